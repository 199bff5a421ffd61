import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MIB = 1 << 20


def parquet(columns, **options):
    """A Parquet file of these columns."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


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
def test_every_format_is_read(read_as, format_, content, rows):
    assert read_as(content, format_) == text(*rows)


def test_a_binary_file_is_its_bytes_where_they_are_wanted(read_as):
    assert read_as(b"\xff\n", "binary", as_bytes=True) == [(0, {"bytes": b"\xff\n"})]


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
        ("parquet", b"PAR1 this is none PAR1", [(0, ("read", "ArrowInvalid"))]),
        ("binary", b"\x89PNG\xff", [(0, ("decode", "UnicodeDecodeError"))]),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_bad_record_is_told_by_its_stage_and_kind(read_as, format_, content, rows):
    assert [row for row in read_as(content, format_) if isinstance(row[1], tuple)] == rows


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "json", "binary"])
def test_a_prompt_of_many_megabytes_is_one_prompt(read_as, format_):
    prompt = "0123456789" * (9 * MIB // 10)
    contents = {"jsonl": json.dumps({"text": prompt}), "json": json.dumps([{"text": prompt}]), "csv": "text\n" + prompt}
    assert read_as(contents.get(format_, prompt).encode(), format_) == text((0, prompt))


@pytest.mark.parametrize("length", range(4 * MIB - 3, 4 * MIB + 2))
def test_a_line_may_end_wherever_a_block_does(read_as, length):
    lines = ["x" * length, "second", "third"]
    assert read_as("\r\n".join(lines).encode(), "text") == text(*enumerate(lines))


def test_positions_go_on_over_blocks_and_chunks(read_as):
    line = b"x" * 999 + b"\n"
    assert [position for position, _ in read_as(line * 10_000, "text")] == list(range(10_000))


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
def test_a_bad_record_keeps_its_raw_text(bad_as, format_, content, raw):
    assert bad_as(content, format_)[-1].raw == raw


@pytest.mark.parametrize(("format_", "content"), [("jsonl", b"x" * 10_000), ("text", b"\xff" * 10_000)])
def test_the_raw_text_of_a_bad_record_is_cut(bad_as, format_, content):
    assert len(bad_as(content, format_)[0].raw) == 4096


class Broken(io.BytesIO):
    """A store that fails."""

    def read(self, *_args):
        raise self.error


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "json", "binary"])
@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), OSError("AWS Error NETWORK_CONNECTION")])
def test_a_failure_of_the_store_is_raised(read_as, format_, error):
    f = Broken()
    f.error = error
    with pytest.raises(OSError, match=r"reset|AWS"):
        read_as(f, format_)
