"""Records of files: good ones as mappings or tables, and bad ones, which never take the others with them."""

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from rayferry.job.rows import RAW_CHARS, RowError, clean

ROWS_PER_CHUNK = 512
CHUNK_BYTES = 4 << 20
BOMS_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # the first also begins UTF-32

Record = dict[str, Any]
Unwanted = Callable[[int, int], bool]


def none_unwanted(_start: int, _stop: int) -> bool:
    """Every record is wanted."""
    return False


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
        records: as many mappings or failures; or a table, where all of them fit it; or None: not wanted, and not read.
        lines: the JSON lines that a table came of: it tells a null no longer from what is not there.
    """

    positions: Sequence[int]
    records: list[Record | BadRecordError] | pa.Table | None
    lines: bytes | None = None

    def to_list(self) -> list[Record | BadRecordError]:
        """The records one by one."""
        if self.records is None or isinstance(self.records, list):
            return self.records or []
        if self.lines is not None:
            return [json_line(line) for _, line in lines_of(0, self.lines)]
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


def is_store_failure(error: Exception) -> bool:
    """True if the store or the disk failed, rather than the file being broken.

    What Arrow says of a broken file carries no errno and does not name AWS.
    """
    return isinstance(error, OSError) and (bool(error.errno) or "AWS Error" in str(error))


def gathered(records: Iterator[tuple[int, Record | BadRecordError]]) -> Iterator[Chunk]:
    """Records with their positions, several hundred a chunk."""
    while several := list(islice(records, ROWS_PER_CHUNK)):
        yield Chunk([position for position, _ in several], [record for _, record in several])


def blocks(f: Any) -> Iterator[tuple[int, bytes] | BadRecordError]:
    """Whole lines, several MiB at a time, with the first one's number; a failure where the file breaks off."""
    pieces: list[bytes] = []
    number = 0
    while True:
        try:
            chunk = f.read(CHUNK_BYTES)
        except Exception as error:
            if is_store_failure(error):
                raise
            # what there is of a line that breaks off is no record
            begun = b"".join(pieces)[: 2 * RAW_CHARS].decode(errors="replace")
            yield BadRecordError(
                "read", f"the file breaks off or is damaged after line {number}: {error}", begun, type(error).__name__
            )
            return
        if not chunk:
            break
        if not number and not pieces and chunk.startswith(BOMS_UTF16):
            yield utf16()
            return
        end = chunk.rfind(b"\n") + 1
        if end:
            lines = b"".join([*pieces, memoryview(chunk)[:end]])
            yield number, lines
            number += lines.count(b"\n")
            pieces = [chunk[end:]]
        else:
            pieces.append(chunk)
    if rest := b"".join(pieces):
        yield number, rest


def utf16() -> BadRecordError:
    """What is said of a file in UTF-16, once for all of it."""
    return BadRecordError("decode", "the file is in UTF-16, not in UTF-8", error_type="UnicodeDecodeError")


def lines_of(number: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a block with their numbers, blank ones left out."""
    if not number:
        block = block.removeprefix(codecs.BOM_UTF8)
    for index, line in enumerate(block.split(b"\n")):
        if line.strip():
            yield number + index, line.rstrip(b"\r")


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
        return BadRecordError("read", f"the file breaks off or is damaged: {error}", error_type=type(error).__name__)


def json_line(line: bytes) -> Record | BadRecordError:
    """The record that a JSON line is."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadRecordError("decode", error, line[: 2 * RAW_CHARS].decode(errors="replace"))
    try:
        return as_record(json.loads(text), surrogates="\\ud" in text or "\\uD" in text)
    except (ValueError, RecursionError) as error:  # nesting past all sense
        return BadRecordError("parse", error, text)


def as_record(value: object, *, surrogates: bool) -> Record:
    """A JSON value, if it is a record.

    Args:
        value: the value.
        surrogates: it may hold some; a pair of them is a character, one alone is no text.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deeply.
    """
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
