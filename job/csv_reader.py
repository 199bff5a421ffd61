"""CSV and TSV files with a header line."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rayferry.job.records import BOMS_UTF16, BadRecordError, Chunk, Record, distinct, gathered, is_store_failure, utf16
from rayferry.job.rows import RAW_CHARS

_ESCAPED_BOMS_UTF16 = tuple(bom.decode(errors="surrogateescape") for bom in BOMS_UTF16)


def read_csv(f: Any, delimiter: str) -> Iterator[Chunk]:
    """Records by the header line; every value stays text, as no type holds for a whole file unread."""
    return gathered(_records(f, delimiter))


def _records(f: Any, delimiter: str) -> Iterator[tuple[int, Record | BadRecordError]]:
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
                BadRecordError(
                    "read",
                    f"the file breaks off or is damaged after record {position}: {error}",
                    error_type=type(error).__name__,
                ),
            )
            return
        if not record:
            continue
        if header is None and record[0].startswith(_ESCAPED_BOMS_UTF16):
            yield position, utf16()
            return
        if ended:  # further lines of this record were looked for
            raw = json.dumps([_readable(value[:RAW_CHARS]) for value in record[:100]], ensure_ascii=False)
            yield position, BadRecordError("parse", ValueError("a quote is opened and never closed"), raw)
            return
        if header is None:
            header = distinct([_readable(name) for name in record])
            continue
        yield position, _record(header, record)
        position += 1


def _to_the_end(lines: Iterable[str], ended: list[bool]) -> Iterator[str]:
    """The lines; `ended` is no longer empty once more were asked for than there are."""
    yield from lines
    ended.append(True)


def _record(header: list[str], record: list[str]) -> Record | BadRecordError:
    raw = json.dumps([_readable(value[:RAW_CHARS]) for value in record[:100]], ensure_ascii=False)
    try:
        "".join(record).encode()  # fails on a byte that was not UTF-8
    except UnicodeEncodeError:
        return BadRecordError("decode", "the record holds bytes that are not UTF-8", raw, "UnicodeDecodeError")
    if len(record) != len(header):
        return BadRecordError("parse", ValueError(f"{len(record)} values for {len(header)} columns"), raw)
    return dict(zip(header, record, strict=True))


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
