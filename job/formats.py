"""What kind of file an input file is: by its name, and where that tells nothing or lies, by its first bytes."""

import json
import posixpath
import re
from dataclasses import dataclass

FORMATS = ("text", "jsonl", "json", "csv", "tsv", "parquet", "binary", "openai")
_BY_SUFFIX = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".bin": "binary",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"), "binary"),
}
_COMPRESSED_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
# Source: RFC 1952 (gzip), RFC 8878 (zstd), the lz4 frame format, bzip2's header
_COMPRESSED_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    **{b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)},
}
_PARQUET_MAGIC = b"PAR1"
# a line that only begins something, and one that may be an object
_OPENED = re.compile(r"\{|\[\s*(\{.*)?")
_OBJECT = re.compile(r'\{\s*"')
_REASONS = {
    "jsonl": "it holds JSON lines",
    "json": "it holds one JSON document",
    "openai": "it holds OpenAI batch lines",
    "binary": "it is not text",
    "text": "it is text",
}
_OPENAI_KEYS = {"custom_id", "url", "body"}
HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Kind:
    """How a file is to be read.

    Attributes:
        format: one of FORMATS.
        compression: Arrow's name of the codec, or None.
        reason: what decided, in words, where it was not the name alone.
    """

    format: str
    compression: str | None = None
    reason: str = ""


def compression_of(path: str, head: bytes) -> str | None:
    """The codec of a file that begins with `head`.

    The bytes decide. Where the name says otherwise and they are not text either, the name is believed, so that
    reading fails as it should.
    """
    for magic, codec in _COMPRESSED_MAGIC.items():
        if head.startswith(magic):
            return codec
    named = _COMPRESSED_SUFFIXES.get(posixpath.splitext(path)[1].lower())
    return named if named and head and not _is_text(head) else None


def by_name(path: str) -> str | None:
    """The format that a file's suffix tells, a compression's suffix aside, or None."""
    stem, suffix = posixpath.splitext(path)
    if suffix.lower() in _COMPRESSED_SUFFIXES:
        suffix = posixpath.splitext(stem)[1]
    return _BY_SUFFIX.get(suffix.lower())


def decide(path: str, head: bytes) -> tuple[str, str]:
    """The format of a file whose content, decompressed, begins with `head`; and the reason, if not its name.

    A `.json` file may hold one document or lines; a name may be wrong, or tell nothing.
    """
    named = by_name(path)
    if head.startswith(_PARQUET_MAGIC) and (named in {None, "parquet"} or not _is_text(head)):
        return "parquet", "" if named == "parquet" else "it begins as Parquet does"
    if named in {"json", "jsonl"}:
        found = _json_kind(head, named)
    elif named is not None:
        found = named
    elif not _is_text(head):
        found = "binary"
    else:
        opened = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))
        found = _json_kind(head, "text") if opened else "text"
    return found, "" if found == named else _REASONS[found]


def is_openai_line(record: object) -> bool:
    """True for a line of an OpenAI batch file."""
    return isinstance(record, dict) and record.keys() >= _OPENAI_KEYS and str(record["url"]).startswith("/v1/")


def _json_kind(head: bytes, otherwise: str) -> str:
    """`json`, `jsonl` or `openai`, by the first line that is not blank; where that is no value, by the next too."""
    text = head.decode("utf-8-sig", errors="replace").strip()
    line, _, rest = text.partition("\n")
    first = _value(line)
    if first is None and _value(text) is not None:
        return "json"
    # else a bad first line, or the beginning of a document over several lines
    record = _value(rest.lstrip().partition("\n")[0]) if first is None else first
    if isinstance(record, dict):
        found = "openai" if is_openai_line(record) else "jsonl"
    elif first is not None:
        found = "jsonl" if rest else "json"
    elif _OPENED.fullmatch(line.strip()):
        found = "json"
    else:
        found = "jsonl" if otherwise == "text" and _OBJECT.match(line) else otherwise
    return found


def _value(text: str) -> object:
    """The one JSON value that a text is; None if it is none, or `null`."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and len(head) >= HEAD_BYTES  # a character cut at the end
    return True
