import bz2
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.job.readers import BadRecordError, Inflated, distinct, is_store_failure, read_chunks

MIB = 1 << 20


def parquet(columns, **options):
    """A Parquet file of these columns."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def told(record):
    """A good record, or where and how a bad one failed."""
    return (record.stage, record.error_type) if isinstance(record, BadRecordError) else record


def opened(content):
    return pa.BufferReader(content) if isinstance(content, bytes) else content


def read(content, format_, **options):
    """(position, record) of all that is read."""
    return [
        (position, told(record))
        for chunk in read_chunks(opened(content), format_, **options)
        for position, record in zip(chunk.positions, chunk.to_list(), strict=True)
    ]


def failures(content, format_, **options):
    """The bad records."""
    records = [record for chunk in read_chunks(opened(content), format_, **options) for record in chunk.to_list()]
    return [record for record in records if isinstance(record, BadRecordError)]


def text(*rows):
    return [(position, {"text": value}) for position, value in rows]


@pytest.mark.parametrize(
    ("format_", "content", "rows"),
    [
        ("text", b"one\ntwo\n", [(0, "one"), (1, "two")]),
        ("text", b"one\ntwo", [(0, "one"), (1, "two")]),
        ("text", b"one\r\ntwo\r\n", [(0, "one"), (1, "two")]),
        ("text", b"\n\none\n   \n\t\r\ntwo\n\n", [(2, "one"), (5, "two")]),
        ("text", b"  indented \n", [(0, "  indented ")]),
        ("text", "é\u2028ü\x0b\x0c漢\n".encode(), [(0, "é\u2028ü\x0b\x0c漢")]),
        ("text", b"nul\0byte\n", [(0, "nul\0byte")]),
        ("text", b"\n\n  \n", []),
        ("text", b"", []),
        ("text", b"\xef\xbb\xbfone\ntwo\n", [(0, "one"), (1, "two")]),
        ("jsonl", b'{"text": "one"}\n\n{"text": "two"}', [(0, "one"), (2, "two")]),
        ("jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "\\u00e9"}', [(0, "one"), (1, "é")]),
        ("jsonl", b'{"text": "\\ud83d\\ude00"}', [(0, "😀")]),
        ("jsonl", b'{"text": "\\uD83D\\uDE00"}', [(0, "😀")]),
        ("openai", b'{"text": "one"}', [(0, "one")]),
        ("json", b'{"text": "one"}', [(0, "one")]),
        ("json", b'\xef\xbb\xbf\n{\n"text":\r\n"one"}\n', [(0, "one")]),
        ("json", b'[{"text": "one"},\n{"text": "two"}]\n', [(0, "one"), (1, "two")]),
        ("json", b'{"text": "one"}\n{"text": "two"}', [(0, "one"), (1, "two")]),
        ("json", b"[]", []),
        ("json", b" [ ] ", []),
        ("json", b"", []),
        ("csv", b"text\none\ntwo\n", [(0, "one"), (1, "two")]),
        ("csv", b"\xef\xbb\xbftext\r\none\r\n\r\ntwo", [(0, "one"), (1, "two")]),
        ("csv", b'text\n"a ""b"",\r\nc"\nd\n', [(0, 'a "b",\r\nc'), (1, "d")]),
        ("csv", b"text\n", []),
        ("csv", b"", []),
        ("tsv", b"text\none, two\n", [(0, "one, two")]),
        ("parquet", parquet({"text": ["one", "two"]}), [(0, "one"), (1, "two")]),
        ("parquet", parquet({"text": ["a", "b", "c"]}, row_group_size=2), [(0, "a"), (1, "b"), (2, "c")]),
        ("parquet", parquet({"text": pa.array(["one"]).dictionary_encode()}), [(0, "one")]),
        ("parquet", parquet({"text": pa.array([], pa.string())}), []),
        ("binary", b"line one\nline two\r\n", [(0, "line one\nline two\r\n")]),
        ("binary", b"\xef\xbb\xbfone", [(0, "one")]),
    ],
)  # fmt: skip
def test_every_format_is_read(format_, content, rows):
    assert read(content, format_) == text(*rows)


def test_a_binary_file_is_its_bytes_where_they_are_wanted():
    assert read(b"\xff\n", "binary", as_bytes=True) == [(0, {"bytes": b"\xff\n"})]


@pytest.mark.parametrize(
    ("format_", "content", "rows"),
    [
        ("text", b"ok\n\xff\n", [(1, ("decode", "UnicodeDecodeError"))]),
        ("jsonl", b'{"text": "a"}\n{"text":\n', [(1, ("parse", "JSONDecodeError"))]),
        ("jsonl", b'{"text": "a"} {"text": "b"}\n', [(0, ("parse", "JSONDecodeError"))]),
        ("jsonl", b'[1]\n"x"\nnull\n5\n', [(index, ("parse", "ValueError")) for index in range(4)]),
        ("jsonl", b'{"text": "\xff"}\n', [(0, ("decode", "UnicodeDecodeError"))]),
        ("jsonl", b'{"text": 1' + b"0" * 5000 + b"}\n", [(0, ("parse", "ValueError"))]),
        ("json", b'[{"text": "a"}, 5, "x"]', [(1, ("parse", "ValueError")), (2, ("parse", "ValueError"))]),
        ("json", b'[{"text": "a"} {"text": "b"}]', [(1, ("parse", "ValueError"))]),
        ("json", b'[{"text": "a"}, ]', [(1, ("parse", "JSONDecodeError"))]),
        ("json", b'[{"text": "a"},', [(1, ("parse", "ValueError"))]),
        ("json", b'[{"text": "a"}', [(1, ("parse", "ValueError"))]),
        ("json", b"[", [(0, ("parse", "ValueError"))]),
        ("json", b"[] x", [(0, ("parse", "JSONDecodeError"))]),
        ("json", b'[{"text": "a"}, {"text', [(1, ("parse", "JSONDecodeError"))]),
        ("json", b'{"text": "a"} x', [(1, ("parse", "JSONDecodeError"))]),
        ("json", b'{"text": "\xff"}', [(0, ("decode", "UnicodeDecodeError"))]),
        ("csv", b"text,n\none\na,b\ntwo,2,3\n", [(0, ("parse", "ValueError")), (2, ("parse", "ValueError"))]),
        ("csv", b"text\n\xff\nok\n", [(0, ("decode", "UnicodeDecodeError"))]),
        ("parquet", b"PAR1 this is none PAR1", [(0, ("read", "str"))]),
        ("binary", b"\x89PNG\xff", [(0, ("decode", "UnicodeDecodeError"))]),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_bad_record_is_told_by_its_stage_and_kind(format_, content, rows):
    assert [row for row in read(content, format_) if isinstance(row[1], tuple)] == rows


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
def test_a_hostile_line_fails_alone(line):
    rows = read(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n', "jsonl")
    assert (rows[0], type(rows[1][1]), rows[2]) == ((0, {"text": "one"}), tuple, (2, {"text": "two"}))


@pytest.mark.parametrize("name", ["escaped", "escaped in capitals", "in another column", "null"])
def test_a_hostile_item_of_a_document_fails_alone(name):
    rows = read(b'[{"text": "one"},' + HOSTILE[name] + b',{"text": "two"}]', "json")
    assert (rows[0], type(rows[1][1]), rows[2]) == ((0, {"text": "one"}), tuple, (2, {"text": "two"}))


@pytest.mark.parametrize("depth", range(900, 1000, 3))
def test_no_depth_of_nesting_ends_the_reading(depth):
    deep = b"[" * depth + rb'"\u00e9\ud83d\ude00"' + b"]" * depth
    assert len(read(b'[{"text": ' + deep + b"}]", "json")) == 1


def test_a_csv_file_whose_header_is_no_utf8_is_read():
    assert len(read("größe,text\n1,a\n2,b\n".encode("latin-1"), "csv")) == 2


def test_csv_values_stay_text():
    assert read(b"text,n,\np,007,x\n", "csv") == [(0, {"text": "p", "n": "007", "column_3": "x"})]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_2", "a_3"]),
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
        (["", "a", ""], ["column_1", "a", "column_3"]),
        (["column_2", ""], ["column_2", "column_2_2"]),
    ],
)
def test_column_names_are_made_distinct(names, found):
    assert distinct(names) == found


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "json", "binary"])
def test_a_prompt_of_many_megabytes_is_one_prompt(format_):
    prompt = "0123456789" * (9 * MIB // 10)
    contents = {"jsonl": json.dumps({"text": prompt}), "json": json.dumps([{"text": prompt}]), "csv": "text\n" + prompt}
    assert read(contents.get(format_, prompt).encode(), format_) == text((0, prompt))


@pytest.mark.parametrize("length", range(4 * MIB - 3, 4 * MIB + 2))
def test_a_line_may_end_wherever_a_block_does(length):
    lines = ["x" * length, "second", "third"]
    assert read("\r\n".join(lines).encode(), "text") == text(*enumerate(lines))


def test_positions_go_on_over_blocks_and_chunks():
    line = b"x" * 999 + b"\n"
    assert [position for position, _ in read(line * 10_000, "text")] == list(range(10_000))


SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64())])


def is_table(content):
    return all(isinstance(chunk.records, pa.Table) for chunk in read_chunks(pa.BufferReader(content), "jsonl", SCHEMA))


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
    (chunk,) = read_chunks(pa.BufferReader(b'{"text": "a"}\n{"n": null}\n'), "jsonl", SCHEMA)
    assert (type(chunk.records), chunk.to_list()) == (pa.Table, [{"text": "a"}, {"n": None}])


TIMES = {
    "time": (pa.array([2**62], pa.timestamp("us")), 2**62),
    "zone": (pa.array([1], pa.timestamp("us", tz="Mars/Phobos")), 1),
    "date": (pa.array([2**30], pa.int32()).view(pa.date32()), 2**30),
    "duration": (pa.array([2**62], pa.duration("s")), 2**62),
}


@pytest.mark.parametrize(("column", "number"), TIMES.values(), ids=TIMES)
def test_a_time_that_python_does_not_have_is_its_number(column, number):
    (chunk,) = read_chunks(pa.BufferReader(parquet({"text": ["a"], "t": column})), "parquet")
    assert chunk.to_list() == [{"text": "a", "t": number}]


@pytest.mark.parametrize(
    ("format_", "content", "raw"),
    [
        ("jsonl", b'{"text": "a\n', '{"text": "a'),
        ("text", b"caf\xe9\n", "caf\ufffd"),
        ("csv", b"text,n\none\n", '["one"]'),
        ("csv", b"text,n\ncaf\xe9,5\n", '["caf\ufffd", "5"]'),
        ("json", b'[{"text": "a"} x', "x"),
        ("binary", b"caf\xe9", "caf\ufffd"),
    ],
)  # fmt: skip
def test_a_bad_record_keeps_its_raw_text(format_, content, raw):
    assert failures(content, format_)[-1].raw == raw


@pytest.mark.parametrize(("format_", "content"), [("jsonl", b"x" * 10_000), ("text", b"\xff" * 10_000)])
def test_the_raw_text_of_a_bad_record_is_cut(format_, content):
    assert len(failures(content, format_)[0].raw) == 4096


@pytest.mark.parametrize("codec", ["gzip", "bz2", "zstd", "lz4"])
def test_a_compressed_file_is_read_whole(codec):
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, codec) as out:
        out.write(b"line\n" * 60_000)
    found = read(Inflated(pa.BufferReader(stream.getvalue()), codec), "text")
    assert found == text(*((index, "line") for index in range(60_000)))


def test_a_gzip_file_of_two_members_is_read_whole():
    content = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    assert read(Inflated(pa.BufferReader(content), "gzip"), "text") == text((0, "one"), (1, "two"))


CUT = gzip.compress(b"".join(b'{"text": "%064d"}\n' % number for number in range(9000)))[:-2000]


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv"])
def test_what_comes_before_a_damage_is_read_and_the_damage_is_the_last_record(format_):
    rows = read(Inflated(pa.BufferReader(CUT), "gzip"), format_)
    good, (position, last) = rows[:-1], rows[-1]
    assert ([p for p, _ in good], last[0]) == (list(range(position)), "read")
    assert position > 1000


def test_a_line_that_breaks_off_is_no_good_record():
    *good, (_, last) = read(Inflated(pa.BufferReader(CUT), "gzip"), "text")
    assert ({len(record["text"]) for _, record in good}, last[0]) == ({76}, "read")


@pytest.mark.parametrize("format_", ["json", "binary"])
def test_a_damaged_file_that_is_one_document_is_one_failure(format_):
    assert [record[0] for _, record in read(Inflated(pa.BufferReader(CUT), "gzip"), format_)] == ["read"]


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "json", "binary"])
def test_what_only_calls_itself_compressed_is_one_failure(format_):
    found = read(Inflated(pa.BufferReader(bz2.compress(b"text\n")), "gzip"), format_)
    assert [(position, record[0]) for position, record in found] == [(0, "read")]


def test_of_a_damaged_row_group_each_row_is_a_failure_and_the_next_is_read():
    columns = {"text": [f"row {index}" for index in range(6)]}
    content = bytearray(parquet(columns, row_group_size=2, compression="none", use_dictionary=False))
    at = pq.read_metadata(io.BytesIO(content)).row_group(1).column(0).data_page_offset
    content[at : at + 9] = b"\xff" * 9
    rows = read(bytes(content), "parquet")
    assert [record[0] if isinstance(record, tuple) else record["text"] for _, record in rows] == [
        "row 0", "row 1", "read", "read", "row 4", "row 5",
    ]  # fmt: skip


class Broken(io.BytesIO):
    """A store that fails."""

    def read(self, *_args):
        raise self.error


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "json", "binary"])
@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), OSError("AWS Error NETWORK_CONNECTION")])
def test_a_failure_of_the_store_is_raised(format_, error):
    f = Broken()
    f.error = error
    with pytest.raises(OSError, match=r"reset|AWS"):
        read(f, format_)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError("Truncated compressed stream"), False),
        (OSError(5, "Input/output error"), True),
        (OSError("AWS Error ACCESS_DENIED"), True),
        (ValueError("AWS Error"), False),
    ],
)
def test_a_store_failure_is_told_from_a_broken_file(error, is_one):
    assert is_store_failure(error) is is_one
