import pyarrow as pa
import pytest

from rayferry.job.json_reader import read_jsonl

HOSTILE = {
    "escaped": rb'{"text": "\ud800"}',
    "escaped in capitals": rb'{"text": "\uD800"}',
    "in another column": rb'{"text": "ok", "more": ["\uDFff"]}',
    "in a column's name": rb'{"text": "ok", "\uD800": 1}',
    "raw": b'{"text": "\xed\xa0\x80"}',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"text": "ok", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "null": b"null",
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_line_fails_alone(read_as, line):
    rows = read_as(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n', "jsonl")
    assert (rows[0], type(rows[1][1]), rows[2]) == ((0, {"text": "one"}), tuple, (2, {"text": "two"}))


@pytest.mark.parametrize("name", ["escaped", "escaped in capitals", "in another column", "null"])
def test_a_hostile_item_of_a_document_fails_alone(read_as, name):
    rows = read_as(b'[{"text": "one"},' + HOSTILE[name] + b',{"text": "two"}]', "json")
    assert (rows[0], type(rows[1][1]), rows[2]) == ((0, {"text": "one"}), tuple, (2, {"text": "two"}))


@pytest.mark.parametrize("depth", range(900, 1000, 3))
def test_no_depth_of_nesting_ends_the_reading(read_as, depth):
    deep = b"[" * depth + rb'"\u00e9\ud83d\ude00"' + b"]" * depth
    assert len(read_as(b'[{"text": ' + deep + b"}]", "json")) == 1


SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64())])


def is_table(content):
    return all(isinstance(chunk.records, pa.Table) for chunk in read_jsonl(pa.BufferReader(content), SCHEMA))


@pytest.mark.parametrize(
    ("content", "fits"),
    [
        (b'{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n', True),
        (b'{"text": "a"}\r\n{"n": null}', True),
        (b'{"text": "a"}\n\n{"text": "b"}\n', False),
        (b'{"text": "a"} {"text": "b"}', False),
        (b'{"text": "a", "n": 1.5}', False),
        (b'{"text": 5}', False),
        (b'{"text": "a", "more": 1}', False),
        (b'{"text": "a", "text": "b"}', False),
        (rb'{"text": "\ud800"}', False),
        (b'{"text": "\xff"}', False),
        (b'\xef\xbb\xbf{"text": "a"}', False),
    ],
)
def test_json_lines_are_a_table_only_if_all_fit_the_schema(content, fits):
    assert is_table(content) is fits


def test_a_table_of_json_lines_tells_null_from_what_is_not_there():
    (chunk,) = read_jsonl(pa.BufferReader(b'{"text": "a"}\n{"n": null}\n'), SCHEMA)
    assert (type(chunk.records), chunk.to_list()) == (pa.Table, [{"text": "a"}, {"n": None}])
