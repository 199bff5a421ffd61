"""Files into records, by their format."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rayferry.job.csv_reader import read_csv
from rayferry.job.json_reader import read_json, read_jsonl
from rayferry.job.parquet_reader import read_parquet
from rayferry.job.records import (
    BadRecordError,
    Chunk,
    Record,
    Unwanted,
    blocks,
    gathered,
    lines_of,
    none_unwanted,
    whole,
)
from rayferry.job.rows import RAW_CHARS


def read_chunks(
    f: Any,
    format_: str,
    schema: pa.Schema | None = None,
    *,
    as_bytes: bool = False,
    unwanted: Unwanted = none_unwanted,
) -> Iterator[Chunk]:
    """The records of an open file, in order.

    Args:
        f: the file, decompressed (and with random access for Parquet).
        format_: one of `formats.FORMATS`.
        schema: JSON lines that fit it come as tables, which is faster.
        as_bytes: records of binary files have `bytes` in place of `text`.
        unwanted: told a first position and the one after the last, whether none of these records is wanted; where
            it can be told before they are parsed, their chunk comes without records.

    Raises:
        OSError: the store failed. What is wrong with the file itself is a `BadRecordError` in the last chunk.
    """
    if format_ in {"jsonl", "openai"}:
        return read_jsonl(f, schema, unwanted)
    if format_ == "text":
        return _text(f, unwanted)
    if format_ == "parquet":
        return read_parquet(f, unwanted)
    if format_ == "json":
        return read_json(f)
    if format_ == "binary":
        return gathered(_binary(f, as_bytes=as_bytes))
    return read_csv(f, "\t" if format_ == "tsv" else ",")


def _text(f: Any, unwanted: Unwanted) -> Iterator[Chunk]:
    end = 0
    for block in blocks(f):
        if isinstance(block, BadRecordError):
            yield Chunk([end], [block])
            return
        number, lines = block
        end = number + lines.count(b"\n") + (not lines.endswith(b"\n"))
        if unwanted(number, end):
            yield Chunk(range(number, end), None)
            continue
        yield from gathered((position, _text_line(line)) for position, line in lines_of(number, lines))


def _text_line(line: bytes) -> Record | BadRecordError:
    try:
        return {"text": line.decode()}
    except UnicodeDecodeError as error:
        return BadRecordError("decode", error, line[: 2 * RAW_CHARS].decode(errors="replace"))


def _binary(f: Any, *, as_bytes: bool) -> Iterator[tuple[int, Record | BadRecordError]]:
    content = whole(f)
    if isinstance(content, BadRecordError):
        yield 0, content
    elif as_bytes:
        yield 0, {"bytes": content}
    else:
        try:
            yield 0, {"text": content.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            yield 0, BadRecordError("decode", error, content[:1024].decode(errors="replace"))
