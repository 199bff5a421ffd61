"""JSON lines, and JSON documents of one record or a list of them."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rayferry.job.columns import parse_json_lines
from rayferry.job.records import (
    BadRecordError,
    Chunk,
    Record,
    Unwanted,
    as_record,
    blocks,
    gathered,
    json_line,
    lines_of,
    none_unwanted,
    whole,
)
from rayferry.job.rows import RAW_CHARS


def read_jsonl(f: Any, schema: pa.Schema | None = None, unwanted: Unwanted = none_unwanted) -> Iterator[Chunk]:
    """JSON lines; those that fit the schema as tables."""
    end = 0
    for block in blocks(f):
        if isinstance(block, BadRecordError):
            yield Chunk([end], [block])
            return
        number, lines = block
        num_lines = lines.count(b"\n") + (not lines.endswith(b"\n"))
        end = number + num_lines
        if unwanted(number, end):
            yield Chunk(range(number, end), None)
            continue
        table = _fast(lines, num_lines, schema)
        if table is not None:
            yield Chunk(range(number, end), table, lines)
        else:
            yield from gathered((position, json_line(line)) for position, line in lines_of(number, lines))


def _fast(lines: bytes, num_lines: int, schema: pa.Schema | None) -> pa.Table | None:
    """The block as a table, if each line is surely one object: then no `}` is followed by `{` within a line."""
    if schema is None:
        return None
    if b"\r" in lines:
        lines = lines.replace(b"\r\n", b"\n")
    if not (lines.startswith(b"{") and lines.endswith((b"}", b"}\n"))) or lines.count(b"}\n{") != num_lines - 1:
        return None
    return parse_json_lines(lines, num_lines, schema)


def read_json(f: Any) -> Iterator[Chunk]:
    """One JSON document, which is read whole: a record, a list of them, or several one after another."""
    return gathered(_records(f))


def _records(f: Any) -> Iterator[tuple[int, Record | BadRecordError]]:
    content = whole(f)
    if isinstance(content, BadRecordError):
        yield 0, content
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield 0, BadRecordError("decode", error, content[:RAW_CHARS].decode(errors="replace"))
        return
    yield from _items(text)


def _items(text: str) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Each object, or each item of a list; after a fault in the list's own form nothing more can be told apart."""
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    listed = text.startswith("[", at)
    at = _skip(text, at + listed)
    position = 0
    if listed and text[at:].rstrip() == "]":
        return
    while at < len(text):
        try:
            value, after = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield position, BadRecordError("parse", error, text[at : at + RAW_CHARS])
            return
        try:
            yield position, as_record(value, surrogates="\\ud" in text[at:after].lower())
        except (ValueError, RecursionError) as error:
            yield position, BadRecordError("parse", error, text[at:after])
        position += 1
        at = _skip(text, after)
        if listed and text.startswith(",", at):
            at = _skip(text, at + 1)
        elif listed and text.startswith("]", at) and _skip(text, at + 1) == len(text):
            return
        elif listed:
            fault = ValueError(f"neither ',' nor the end of the list after item {position - 1}")
            yield position, BadRecordError("parse", fault, text[at : at + RAW_CHARS])
            return
    if listed:
        yield position, BadRecordError("parse", ValueError(f"the list has no end after {position} items"))


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
