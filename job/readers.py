"""Files into records, one bad record never taking the others with it."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayferry.job.columns import parse_json_lines
from rayferry.job.rows import RAW_CHARS, RowError, clean

ROWS_PER_CHUNK = 512
_CHUNK_BYTES = 4 << 20
_PIECE_BYTES = 1 << 16
_MAX_LOST_ROWS = 1_000_000
_BOMS_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # the first also begins UTF-32
_ESCAPED_BOMS_UTF16 = tuple(bom.decode(errors="surrogateescape") for bom in _BOMS_UTF16)

Record = dict[str, Any]


class BadRecordError(RowError):
    """A record that could not be read, decoded or parsed.

    Attributes:
        raw: what was there, as text.
    """

    def __init__(self, stage: str, error: Exception | str, raw: str = "", error_type: str | None = None) -> None:
        super().__init__(stage, error_type or type(error).__name__, clean(" ".join(str(error).splitlines())))
        self.raw = clean(raw[:RAW_CHARS])


@dataclass(frozen=True)
class Chunk:
    """Records that follow each other in a file.

    Attributes:
        positions: where each is in the file, from 0.
        records: as many mappings or failures; or a table, where all of them fit it.
        lines: the JSON lines that a table came of: it tells a null no longer from what is not there.
    """

    positions: Sequence[int]
    records: list[Record | BadRecordError] | pa.Table
    lines: bytes | None = None

    def to_list(self) -> list[Record | BadRecordError]:
        """The records one by one."""
        if isinstance(self.records, list):
            return self.records
        if self.lines is not None:
            return [_json_line(line) for _, line in _lines(0, self.lines)]
        try:
            return list(self.records.to_pylist())
        except Exception:  # noqa: BLE001  # a value that Python has no form for: Arrow has no class for it
            columns = [[_as_py(value) for value in column] for column in self.records.columns]
            return [dict(zip(self.records.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _as_py(value: pa.Scalar) -> Any:
    """A value of Arrow as Python has it; a time past Python's years, or in a zone that is none, as its number."""
    try:
        return value.as_py()
    except Exception:  # noqa: BLE001
        number = pa.int32() if pa.types.is_date32(value.type) or pa.types.is_time32(value.type) else pa.int64()
    try:
        return value.cast(number).as_py()
    except Exception:  # noqa: BLE001
        return f"a {value.type} that cannot be shown"


class Inflated:
    """A compressed file, decompressed; where it is damaged, all that comes before is read."""

    def __init__(self, f: Any, codec: str) -> None:
        self._f = f
        self._codec = codec
        self._stream = self._start()
        self._again: Any = None  # kept for as long as this: Arrow's streams close the file when they go
        self._num_read = 0
        self._error: Exception | None = None

    def read(self, num_bytes: int | None = None) -> bytes:
        """As a file's; a failure is raised by the first read that has nothing to give."""
        if num_bytes is None:
            return bytes(self._stream.read())
        pieces: list[bytes] = []
        while num_bytes > 0 and self._error is None:
            try:
                piece = self._stream.read(min(num_bytes, _PIECE_BYTES))
            except Exception as error:
                if is_store_failure(error):
                    raise
                self._error = error
                piece = self._before_failure()
            if not piece:
                break
            pieces.append(piece)
            num_bytes -= len(piece)
            self._num_read += len(piece)
        if self._error is not None and not pieces:
            raise self._error
        return b"".join(pieces)

    def _start(self) -> Any:
        # Arrow asks for 64 KiB at a time, which of a store would be a request each
        return pa.CompressedInputStream(pa.BufferedInputStream(self._f, _CHUNK_BYTES), self._codec)

    def _before_failure(self) -> bytes:
        """What Arrow threw away, as the read that got it failed later on: the same again, byte by byte."""
        self._f.seek(0)
        self._again = self._start()
        found = bytearray()
        left = self._num_read
        try:
            while left:
                left -= len(self._again.read(min(left, _PIECE_BYTES)))
            while byte := self._again.read(1):
                found += byte
        except Exception as error:
            if is_store_failure(error):
                raise
        return bytes(found)


def read_chunks(f: Any, format_: str, schema: pa.Schema | None = None, *, as_bytes: bool = False) -> Iterator[Chunk]:
    """The records of an open file, in order.

    Args:
        f: the file, decompressed (and with random access for Parquet).
        format_: one of `formats.FORMATS`.
        schema: JSON lines that fit it come as tables, which is faster.
        as_bytes: records of binary files have `bytes` in place of `text`.

    Raises:
        OSError: the store failed. What is wrong with the file itself is a `BadRecordError` in the last chunk.
    """
    if format_ in {"jsonl", "openai"}:
        return _jsonl(f, schema)
    if format_ == "text":
        return _text(f)
    if format_ == "parquet":
        return _parquet(f)
    if format_ == "json":
        return _gathered(_json(f))
    if format_ == "binary":
        return _gathered(_binary(f, as_bytes=as_bytes))
    return _gathered(_csv(f, "\t" if format_ == "tsv" else ","))


def is_store_failure(error: Exception) -> bool:
    """True if the store or the disk failed, rather than the file being broken.

    What Arrow says of a broken file carries no errno and does not name AWS.
    """
    return isinstance(error, OSError) and (bool(error.errno) or "AWS Error" in str(error))


def _gathered(records: Iterator[tuple[int, Record | BadRecordError]]) -> Iterator[Chunk]:
    while several := list(islice(records, ROWS_PER_CHUNK)):
        yield Chunk([position for position, _ in several], [record for _, record in several])


def _blocks(f: Any) -> Iterator[tuple[int, bytes] | BadRecordError]:
    """Whole lines, several MiB at a time, with the first one's number; a failure where the file breaks off."""
    pieces: list[bytes] = []
    number = 0
    while True:
        try:
            chunk = f.read(_CHUNK_BYTES)
        except Exception as error:
            if is_store_failure(error):
                raise
            # what there is of a line that breaks off is no record
            begun = b"".join(pieces)[: 2 * RAW_CHARS].decode(errors="replace")
            yield BadRecordError("read", f"the file breaks off or is damaged after line {number}: {error}", begun)
            return
        if not chunk:
            break
        if not number and not pieces and chunk.startswith(_BOMS_UTF16):
            yield _utf16()
            return
        end = chunk.rfind(b"\n") + 1
        if end:
            lines = b"".join([*pieces, chunk[:end]])
            yield number, lines
            number += lines.count(b"\n")
            pieces = [chunk[end:]]
        else:
            pieces.append(chunk)
    if rest := b"".join(pieces):
        yield number, rest


def _utf16() -> BadRecordError:
    return BadRecordError("decode", "the file is in UTF-16, not in UTF-8", error_type="UnicodeDecodeError")


def _lines(number: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a block with their numbers, blank ones left out."""
    if not number:
        block = block.removeprefix(codecs.BOM_UTF8)
    for index, line in enumerate(block.split(b"\n")):
        if line.strip():
            yield number + index, line.rstrip(b"\r")


def _text(f: Any) -> Iterator[Chunk]:
    end = 0
    for block in _blocks(f):
        if isinstance(block, BadRecordError):
            yield Chunk([end], [block])
            return
        number, lines = block
        end = number + lines.count(b"\n") + (not lines.endswith(b"\n"))
        yield from _gathered((position, _text_line(line)) for position, line in _lines(number, lines))


def _text_line(line: bytes) -> Record | BadRecordError:
    try:
        return {"text": line.decode()}
    except UnicodeDecodeError as error:
        return BadRecordError("decode", error, line[: 2 * RAW_CHARS].decode(errors="replace"))


def _jsonl(f: Any, schema: pa.Schema | None) -> Iterator[Chunk]:
    end = 0
    for block in _blocks(f):
        if isinstance(block, BadRecordError):
            yield Chunk([end], [block])
            return
        number, lines = block
        num_lines = lines.count(b"\n") + (not lines.endswith(b"\n"))
        end = number + num_lines
        table = _fast(lines, num_lines, schema)
        if table is not None:
            yield Chunk(range(number, end), table, lines)
        else:
            yield from _gathered((position, _json_line(line)) for position, line in _lines(number, lines))


def _fast(lines: bytes, num_lines: int, schema: pa.Schema | None) -> pa.Table | None:
    """The block as a table, if each line is surely one object: then no `}` is followed by `{` within a line."""
    if schema is None:
        return None
    if b"\r" in lines:
        lines = lines.replace(b"\r\n", b"\n")
    body = lines.rstrip(b"\n")
    if not (body.startswith(b"{") and body.endswith(b"}")) or body.count(b"}\n{") != num_lines - 1:
        return None
    return parse_json_lines(lines, num_lines, schema)


def _json_line(line: bytes) -> Record | BadRecordError:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadRecordError("decode", error, line[: 2 * RAW_CHARS].decode(errors="replace"))
    try:
        return _as_record(json.loads(text), surrogates="\\ud" in text or "\\uD" in text)
    except (ValueError, RecursionError) as error:  # nesting past all sense
        return BadRecordError("parse", error, text)


def _as_record(value: object, *, surrogates: bool) -> Record:
    if not isinstance(value, dict):
        msg = f"a record must be a JSON object, this one is {type(value).__name__}"
        raise ValueError(msg)  # noqa: TRY004  # one way out for every bad record
    if surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            msg = f"a lone surrogate is no text: {error}"
            raise ValueError(msg) from error
    return value


def whole(f: Any) -> bytes | BadRecordError:
    """All of an open file, or what is wrong with it.

    Raises:
        OSError: the store failed.
    """
    try:
        return bytes(f.read())
    except Exception as error:
        if is_store_failure(error):
            raise
        return BadRecordError("read", f"the file breaks off or is damaged: {error}")


def _json(f: Any) -> Iterator[tuple[int, Record | BadRecordError]]:
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
            yield position, _as_record(value, surrogates="\\ud" in text[at:after].lower())
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


def _csv(f: Any, delimiter: str) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Records by the header line; every value stays text, as no type holds for a whole file unread."""
    csv.field_size_limit(sys.maxsize)  # a prompt may be long
    text = io.TextIOWrapper(io.BufferedReader(_Readable(f)), encoding="utf-8-sig", errors="surrogateescape", newline="")
    ended: list[bool] = []
    records = csv.reader(_to_the_end(text, ended), delimiter=delimiter)
    header: list[str] | None = None
    position = 0
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield position, BadRecordError("parse", error)
            position += 1
            continue
        except Exception as error:
            if is_store_failure(error):
                raise
            yield (
                position,
                BadRecordError("read", f"the file breaks off or is damaged after record {position}: {error}"),
            )
            return
        if not record:
            continue
        if header is None and record[0].startswith(_ESCAPED_BOMS_UTF16):
            yield position, _utf16()
            return
        if ended:  # further lines of this record were looked for
            raw = json.dumps([_readable(value[:RAW_CHARS]) for value in record[:100]], ensure_ascii=False)
            yield position, BadRecordError("parse", ValueError("a quote is opened and never closed"), raw)
            return
        if header is None:
            header = distinct([_readable(name) for name in record])
            continue
        yield position, _csv_record(header, record)
        position += 1


def _to_the_end(lines: Iterable[str], ended: list[bool]) -> Iterator[str]:
    """The lines; `ended` is no longer empty once more were asked for than there are."""
    yield from lines
    ended.append(True)


def _csv_record(header: list[str], record: list[str]) -> Record | BadRecordError:
    raw = json.dumps([_readable(value[:RAW_CHARS]) for value in record[:100]], ensure_ascii=False)
    try:
        "".join(record).encode()  # fails on a byte that was not UTF-8
    except UnicodeEncodeError:
        return BadRecordError("decode", "the record holds bytes that are not UTF-8", raw, "UnicodeDecodeError")
    if len(record) != len(header):
        return BadRecordError("parse", ValueError(f"{len(record)} values for {len(header)} columns"), raw)
    return dict(zip(header, record, strict=True))


def distinct(names: list[str]) -> list[str]:
    """Column names of which none is empty and none the same as another: `column_3`, `text_2`."""
    found: list[str] = []
    for index, given in enumerate(names):
        name = base = given or f"column_{index + 1}"
        count = 1
        while name in found or (name != given and name in names):
            count += 1
            name = f"{base}_{count}"
        found.append(name)
    return found


class _Readable(io.RawIOBase):
    """An Arrow file as Python's own text layer takes it."""

    def __init__(self, f: Any) -> None:
        super().__init__()
        self._f = f

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._f.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _readable(text: str) -> str:
    """Bytes that were not UTF-8 replaced."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _parquet(f: Any) -> Iterator[Chunk]:
    """Row groups one by one: of a damaged one every row is a failure, and the next is read all the same."""
    try:
        file = pq.ParquetFile(f)
        num_rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        _check_counts(file.metadata.num_rows, num_rows)
    except Exception as error:
        if is_store_failure(error):
            raise
        yield Chunk([0], [BadRecordError("read", f"not a Parquet file, or a damaged one: {error}")])
        return
    start = 0
    for index, rows in enumerate(num_rows):
        done = 0
        try:
            for batch in file.iter_batches(batch_size=8 * ROWS_PER_CHUNK, row_groups=[index]):
                table = pa.Table.from_batches([batch])
                table = table.rename_columns(distinct(table.column_names))
                if done + table.num_rows > rows:
                    _check_counts(rows, [done, table.num_rows])
                positions = range(start + done, start + done + table.num_rows)
                done += table.num_rows
                try:
                    table.validate(full=True)
                except pa.ArrowException:
                    yield _valid_rows(table, positions)
                else:
                    yield Chunk(positions, table)
            _check_counts(rows, [done])
        except Exception as error:
            if is_store_failure(error):
                raise
            lost = BadRecordError("read", f"row group {index} is damaged, from row {start + done} on: {error}")
            if rows - done > _MAX_LOST_ROWS:  # a footer that is damaged too may claim any number
                yield Chunk([start + done], [lost])
                return
            for first in range(start + done, start + rows, ROWS_PER_CHUNK):
                positions = range(first, min(first + ROWS_PER_CHUNK, start + rows))
                yield Chunk(positions, [lost] * len(positions))
        start += rows


def _valid_rows(table: pa.Table, positions: range) -> Chunk:
    """The rows one by one, where one of them holds what it must not: text that is not UTF-8, mostly."""
    records: list[Record | BadRecordError] = []
    for at in range(table.num_rows):
        row = table.slice(at, 1)
        try:
            row.combine_chunks().validate(full=True)
            records += Chunk(positions[at : at + 1], row).to_list()
        except (pa.ArrowException, ValueError) as error:
            records.append(BadRecordError("decode", error))
    return Chunk(positions, records)


def _check_counts(whole_count: int, counts: list[int]) -> None:
    if whole_count != sum(counts) or any(count < 0 for count in counts):
        msg = f"it should hold {whole_count} rows, and holds {sum(counts)}"
        raise ValueError(msg)


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
