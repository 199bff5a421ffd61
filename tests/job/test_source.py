import bz2
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rayferry.job import source, storage
from rayferry.job.errors import JobError
from rayferry.job.spec import InputSpec

MIB = 1 << 20


def parquet(columns):
    """A Parquet file of these columns."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def compressed(content, codec):
    """`content` as a stream of one of Arrow's codecs."""
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, codec) as out:
        out.write(content)
    return stream.getvalue().to_pybytes()


def good(rows):
    return [(row["id"], row["prompt"]) for row in rows if row["stage"] is None]


def bad(rows):
    return [(row["id"], row["error_type"]) for row in rows if row["stage"]]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("b/a.txt", "text"),
        ("b/a.text", "text"),
        ("b/a.jsonl", "jsonl"),
        ("b/a.ndjson", "jsonl"),
        ("b/a.json", "jsonl"),
        ("b/a.csv", "csv"),
        ("b/a.parquet", "parquet"),
        ("b/a.bin", "binary"),
        ("b/A.CSV", "csv"),
        ("b/a.txt.gz", "text"),
        ("b/a.jsonl.ZST", "jsonl"),
        ("b.d/a.b.csv.bz2", "csv"),
        ("b/a.txt.lz4", "text"),
    ],
)
def test_the_suffix_tells_the_format(path, kind):
    assert InputSpec(uri="/in").format_of(path) == kind


@pytest.mark.parametrize("path", ["b/a", "b/a.gz", "b.txt/a", "b/a.pdf", "b/a.csv.zip", "b/.txt"])
def test_a_file_whose_suffix_tells_nothing_is_refused(path):
    with pytest.raises(JobError, match=r"set input.format to one of binary, csv, jsonl, parquet, text"):
        InputSpec(uri="/in").format_of(path)


def test_a_declared_format_wins_over_the_suffix():
    assert InputSpec(uri="/in", format="jsonl").format_of("b/a.txt") == "jsonl"


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.txt", b"one\ntwo\n", [("a.txt:0", "one"), ("a.txt:1", "two")]),
        ("a.txt", b"one\ntwo", [("a.txt:0", "one"), ("a.txt:1", "two")]),
        ("a.txt", b"one\r\ntwo\r\n", [("a.txt:0", "one"), ("a.txt:1", "two")]),
        ("a.txt", b"\n\none\n   \n\t\r\ntwo\n\n", [("a.txt:2", "one"), ("a.txt:5", "two")]),
        ("a.txt", b"  indented \n", [("a.txt:0", "  indented ")]),
        ("a.txt", "é\u2028ü\x0b\x0c漢\n".encode(), [("a.txt:0", "é\u2028ü\x0b\x0c漢")]),
        ("a.txt", b"nul\0byte\n", [("a.txt:0", "nul\0byte")]),
        ("a.txt", b"\n\n  \n", []),
        ("a.txt", b"\xef\xbb\xbfone\ntwo\n", [("a.txt:0", "one"), ("a.txt:1", "two")]),
        ("a.jsonl", b'{"text": "one"}\n\n{"prompt": "two"}', [("a.jsonl:0", "one"), ("a.jsonl:2", "two")]),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "\\u00e9"}', [("a.jsonl:0", "one"), ("a.jsonl:1", "é")]),
        ("a.jsonl", b'{"text": "\\ud83d\\ude00"}', [("a.jsonl:0", "😀")]),
        ("a.jsonl", b'{"text": "\\uD83D\\uDE00"}', [("a.jsonl:0", "😀")]),
        ("a.csv", b"text,n\none,1\ntwo,2\n", [("a.csv:0", "one"), ("a.csv:1", "two")]),
        ("a.csv", b"\xef\xbb\xbftext\r\none\r\n\r\ntwo", [("a.csv:0", "one"), ("a.csv:1", "two")]),
        ("a.csv", b'n,text\n1,"a ""b"",\r\nc"\n2,d\n', [("a.csv:0", 'a "b",\r\nc'), ("a.csv:1", "d")]),
        ("a.csv", b"text,n\n", []),
        ("a.parquet", parquet({"text": ["one", "two"]}), [("a.parquet:0", "one"), ("a.parquet:1", "two")]),
        ("a.parquet", parquet({"text": pa.array(["one"]).dictionary_encode()}), [("a.parquet:0", "one")]),
        ("a.parquet", parquet({"text": pa.array([], pa.string())}), []),
        ("a.bin", b"line one\nline two\r\n", [("a.bin:0", "line one\nline two\r\n")]),
    ],
)  # fmt: skip
def test_every_format_is_read(read_rows, name, content, rows):
    assert good(read_rows({name: content})) == rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", gzip.compress(b"one\ntwo\n")),
        ("a.txt.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n")),
        ("a.txt.bz2", bz2.compress(b"one\ntwo\n")),
        ("a.txt.zst", compressed(b"one\ntwo\n", "zstd")),
        ("a.txt.lz4", compressed(b"one\ntwo\n", "lz4")),
        ("a.csv.gz", gzip.compress(b"text\none\ntwo\n")),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n')),
        ("A.TXT.GZ", gzip.compress(b"one\ntwo\n")),
    ],
    ids=["gz", "gz of two members", "bz2", "zst", "lz4", "csv.gz", "jsonl.gz", "GZ"],
)
def test_every_compression_is_read(read_rows, name, content):
    assert good(read_rows({name: content})) == [(f"{name}:0", "one"), (f"{name}:1", "two")]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.txt", b"ok\n\xff\n", [("a.txt:1", "UnicodeDecodeError")]),
        ("a.jsonl", b'{"text": "a"}\n{"text":\n', [("a.jsonl:1", "JSONDecodeError")]),
        ("a.jsonl", b'{"text": "a"} {"text": "b"}\n', [("a.jsonl:0", "JSONDecodeError")]),
        ("a.jsonl", b'[1]\n"x"\nnull\n5\n', [(f"a.jsonl:{index}", "ValueError") for index in range(4)]),
        ("a.jsonl", b'{"text": "\xff"}\n', [("a.jsonl:0", "UnicodeDecodeError")]),
        ("a.jsonl", b'{"other": "a"}\n', [("a.jsonl:0", "MissingColumn")]),
        ("a.jsonl", b"{}\n", [("a.jsonl:0", "MissingColumn")]),
        ("a.jsonl", b'{"text": ""}\n', [("a.jsonl:0", "BadPrompt")]),
        ("a.jsonl", b'{"text": null}\n', [("a.jsonl:0", "BadPrompt")]),
        ("a.jsonl", b'{"text": []}\n', [("a.jsonl:0", "BadPrompt")]),
        ("a.jsonl", b'{"text": 5}', [("a.jsonl:0", "BadPrompt")]),
        ("a.jsonl", b'{"text": false}', [("a.jsonl:0", "BadPrompt")]),
        ("a.jsonl", b'{"text": {}}', [("a.jsonl:0", "BadPrompt")]),
        ("a.jsonl", b'{"text": 1' + b"0" * 5000 + b"}\n", [("a.jsonl:0", "ValueError")]),
        ("a.csv", b"text,n\none\ntwo,2,3\n", [("a.csv:0", "ValueError"), ("a.csv:1", "ValueError")]),
        ("a.csv", b"text\n\xff\nok\n", [("a.csv:0", "UnicodeEncodeError")]),
        ("a.csv", b'text\n""\n', [("a.csv:0", "BadPrompt")]),
        ("a.csv", b"a,b\n1,2\n", [("a.csv:0", "MissingColumn")]),
        ("a.parquet", parquet({"text": ["a", None, ""]}), [("a.parquet:1", "BadPrompt"), ("a.parquet:2", "BadPrompt")]),
        ("a.parquet", parquet({"text": [1.5]}), [("a.parquet:0", "BadPrompt")]),
        ("a.bin", b"\x89PNG\xff", [("a.bin:0", "UnicodeDecodeError")]),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_by_its_kind(read_rows, name, content, rows):
    assert bad(read_rows({name: content})) == rows


@pytest.mark.parametrize(
    "line",
    [
        rb'{"text": "\ud800"}',
        rb'{"text": "\uD800"}',
        rb'{"text": "ok", "more": ["\uDFff"]}',
        rb'{"text": "ok", "\uD800": 1}',
        b'{"text": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"text": "ok", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["escaped", "escaped in capitals", "in another column", "in a column's name", "raw", "deep", "deep and closed"],
)
def test_a_hostile_line_fails_alone(carry, line):
    data, errors = carry({"a.jsonl": b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n'})
    assert ([row["prompt"] for row in data], [row["id"] for row in errors]) == (["one", "two"], ["a.jsonl:1"])


def test_a_csv_file_whose_header_is_no_utf8_does_not_end_the_run(read_rows):
    rows = read_rows({"a.csv": "größe,text\n1,a\n2,b\n".encode("latin-1"), "b.txt": b"ok\n"})
    assert [row["id"] for row in rows] == ["a.csv:0", "a.csv:1", "b.txt:0"]


def test_a_long_csv_value_is_one_prompt(read_rows):
    prompt = "long\n" * 40_000
    assert good(read_rows({"a.csv": f'text,n\n"{prompt}",1\nshort,2\n'.encode()})) == [
        ("a.csv:0", prompt),
        ("a.csv:1", "short"),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.bin"])
def test_a_prompt_of_many_megabytes_is_one_prompt(read_rows, name):
    prompt = "0123456789" * (3 * MIB // 10)
    contents = {
        "a.txt": prompt.encode(),
        "a.bin": prompt.encode(),
        "a.jsonl": json.dumps({"text": prompt}).encode(),
        "a.csv": b"text\n" + prompt.encode(),
    }
    assert good(read_rows({name: contents[name]})) == [(f"{name}:0", prompt)]


@pytest.mark.parametrize("length", range(MIB - 3, MIB + 2))
def test_a_line_may_end_wherever_a_chunk_does(read_rows, length):
    lines = ["x" * length, "second", "third"]
    assert [prompt for _, prompt in good(read_rows({"a.txt": "\r\n".join(lines).encode()}))] == lines


@pytest.mark.parametrize(
    ("name", "content", "raw"),
    [
        ("a.jsonl", b'{"text": "a\n', '{"text": "a'),
        ("a.jsonl", b'{"text": "", "n": 5}\n', '{"text": "", "n": 5}'),
        ("a.txt", b"caf\xe9\n", "caf\ufffd"),
        ("a.csv", b"text,n\none\n", '["one"]'),
        ("a.csv", b"text,n\ncaf\xe9,5\n", "caf\ufffd"),
        ("a.bin", b"caf\xe9", "caf\ufffd"),
    ],
)
def test_a_bad_row_keeps_its_raw_text(read_rows, name, content, raw):
    (row,) = read_rows({name: content})
    assert raw in row["raw"]


def test_the_raw_text_of_a_bad_row_is_cut(read_rows):
    (row,) = read_rows({"a.jsonl": b'{"text": ' + b"x" * 10_000 + b"\n"})
    assert len(row["raw"]) == 4096


def test_a_missing_column_is_told_with_those_that_are_there(read_rows):
    (row,) = read_rows({"a.csv": b"question,answer\na,b\n"})
    assert row["error"] == "no column 'text'; the row has: question, answer"


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"text": ""}, "column 'text' is empty"),
        ({"text": None}, "column 'text' is empty"),
        ({"text": 5}, "column 'text' is a int, not text"),
        ({"text": {"a": 1}}, "column 'text' is a dict, not text"),
    ],
)
def test_a_bad_prompt_is_told_by_what_it_is(read_rows, record, error):
    (row,) = read_rows({"a.jsonl": json.dumps(record).encode()})
    assert row["error"] == error


def test_a_bad_row_has_no_prompt(read_rows):
    (row,) = read_rows({"a.jsonl": b'{"text": 5}\n'})
    assert row["prompt"] is None


def test_a_row_has_its_place_in_the_input(read_rows, tmp_path):
    row = read_rows({"sub/a.txt": b"one\n\ntwo\n"})[1]
    assert (row["source_uri"], row["position"]) == (f"{tmp_path}/in/sub/a.txt", 2)


@pytest.mark.parametrize(
    ("record", "column", "prompt"),
    [
        ({"text": "t", "prompt": "p"}, None, "t"),
        ({"prompt": "p"}, None, "p"),
        ({"text": "t", "question": "q"}, "question", "q"),
        ({"text": "t", "prompt": "p"}, "prompt", "p"),
        ({"id": "x"}, "id", "x"),
        ({"text": [{"role": "user", "content": "é"}]}, None, '[{"role": "user", "content": "é"}]'),
    ],
)
def test_the_prompt_comes_from_the_column_that_is_named_or_from_text_or_prompt(read_rows, record, column, prompt):
    (row,) = read_rows({"a.jsonl": json.dumps(record).encode()}, column=column)
    assert row["prompt"] == prompt


def test_chat_messages_are_read_from_parquet(read_rows):
    messages = [{"role": "user", "content": "Hi"}]
    (row,) = read_rows({"a.parquet": parquet({"messages": [messages]})}, column="messages")
    assert json.loads(row["prompt"]) == messages


def test_an_id_column_names_the_rows(read_rows):
    rows = read_rows({"a.jsonl": b'{"text": "a", "key": "k1"}\n{"text": "b", "key": 2}\n'}, id_column="key")
    assert [row["id"] for row in rows] == ["k1", "2"]


def test_a_bad_row_keeps_the_id_of_its_id_column(read_rows):
    (row,) = read_rows({"a.jsonl": b'{"text": "", "key": "k1"}\n'}, id_column="key")
    assert row["id"] == "k1"


@pytest.mark.parametrize("line", [b'{"text": "a"}', b'{"text": "a", "key": null}'])
def test_a_row_without_its_id_is_bad(read_rows, line):
    assert bad(read_rows({"a.jsonl": line}, id_column="key")) == [("a.jsonl:0", "MissingId")]


def test_the_inputs_own_columns_come_out(carry):
    data, _ = carry({"a.jsonl": b'{"text": "a", "n": 5, "tags": ["x"], "meta": {"k": null}}\n'})
    assert {name: data[0][name] for name in ("text", "n", "tags", "meta")} == {
        "text": "a",
        "n": 5,
        "tags": ["x"],
        "meta": {"k": None},
    }


def test_own_columns_of_our_names_come_out_under_another(carry):
    line = {"text": "p", "id": "i", "model": "m2", "prompt": "q", "finish_reason": None, "num_input_tokens": [1]}
    data, _ = carry({"a.jsonl": json.dumps(line).encode()})
    assert {name: data[0][name] for name in data[0] if name.startswith("input_")} == {
        f"input_{name}": value for name, value in line.items() if name != "text"
    }


def test_own_columns_that_only_errors_have_too_keep_their_names(carry):
    line = {"text": "p", "stage": 1, "error": "e", "error_type": 2.5, "raw": "r", "position": 9, "source_uri": "u"}
    data, errors = carry({"a.jsonl": json.dumps(line).encode()})
    assert ({name: data[0][name] for name in line}, errors) == (line, [])


@pytest.mark.parametrize(
    ("record", "values"),
    [
        ({"text": "p", "id": "ours", "input_id": "theirs"}, {"ours", "theirs"}),
        ({"prompt": "p", "input_prompt": "theirs"}, {"theirs"}),
    ],
)
def test_no_own_column_is_lost_for_its_name(carry, record, values):
    data, _ = carry({"a.jsonl": json.dumps(record).encode()})
    assert values <= set(data[0].values())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "p", "n": "first", "n": "last"}\n'),
        ("a.csv", b"text,n,n\np,first,last\n"),
    ],
)
def test_of_two_columns_of_one_name_the_last_is_kept(carry, name, content):
    data, _ = carry({name: content})
    assert data[0]["n"] == "last"


def test_csv_values_stay_text(carry):
    data, _ = carry({"a.csv": b"text,n,\np,007,x\n"})
    assert (data[0]["n"], data[0][""]) == ("007", "x")


def test_own_columns_follow_those_of_the_contract_in_their_own_order(carry):
    data, _ = carry({"a.jsonl": b'{"z": 1, "text": "a", "b": 2}\n'})
    assert [*data[0]][7:] == ["z", "text", "b"]


def test_rows_with_differing_columns_are_filled_with_null(carry):
    data, _ = carry({"a.jsonl": b'{"text": "a", "x": 1}\n{"text": "b", "y": 2}\n'})
    assert [(row["x"], row["y"]) for row in data] == [(1, None), (None, 2)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, "s"),
        (1, 2**63),
        (True, 1),
        (1, 1.5),
        ([1], ["s"]),
        ({"a": 1}, "s"),
        ({"a": 1}, {"a": "s"}),
        ({"a": 1}, {"b": 2}),
        ({"a": 1}, [1]),
        (None, {"a": 1}),
        ([], [1]),
        ({}, {"a": 1}),
    ],
    ids=str,
)
def test_columns_of_differing_types_in_different_files_are_all_carried(carry, first, second):
    values = {"a.jsonl": first, "b.jsonl": second}
    data, _ = carry({name: json.dumps({"text": name, "v": value}).encode() for name, value in values.items()})
    assert [row["prompt"] for row in data] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    "value", ["{}", "[{}]", '{"a": {}}', "[" * 90 + "]" * 90, "1e999", str(2**70)], ids=lambda v: v[:9]
)
def test_a_value_that_parquet_does_not_know_is_carried(carry, value):
    data, _ = carry({"a.jsonl": f'{{"text": "p", "v": {value}}}\n'.encode()})
    assert len(data) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([7], pa.int32()), 7),
        (pa.array([b"\xff"]), b"\xff"),
        (pa.array([2**63], pa.uint64()), None),
        (pa.array([0], pa.timestamp("us", tz="UTC")), None),
        (pa.array([0], pa.date32()), None),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), None),
        (pa.array([[("a", 0)]], pa.map_(pa.string(), pa.timestamp("us"))), None),
        (pa.array([{"a": [1, None]}]), {"a": [1, None]}),
        (pa.nulls(1), None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_every_type_of_a_parquet_column_is_carried(carry, column, value):
    data, _ = carry({"a.parquet": parquet({"text": ["p"], "v": column})})
    assert "v" in data[0]
    assert value is None or data[0]["v"] == value


NAMES = [
    "a b.txt",
    "50%.txt",
    "a%20b.txt",
    "q?x.txt",
    "h#x.txt",
    "s;t.txt",
    "x:y.txt",
    "ü漢.txt",
    "day=1/a.txt",
    "+.txt",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_read_and_is_part_of_the_id(read_rows, name):
    assert good(read_rows({name: b"p\n"})) == [(f"{name}:0", "p")]


def test_a_file_given_by_itself_names_its_rows_by_its_own_name(cluster, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"p\n")
    reader = source.PromptDatasource(InputSpec(uri=str(path)), storage.list_files(str(path)))
    assert [block.column("id").to_pylist() for task in reader.get_read_tasks(1) for block in task()] == [["a.txt:0"]]


def test_blocks_stay_small(read):
    assert [block.num_rows for block in read({"a.txt": b"x\n" * 1100})] == [512, 512, 76]


def test_ids_go_on_over_blocks(read_rows):
    rows = read_rows({"a.parquet": parquet({"text": ["x"] * 1100})})
    assert [row["id"] for row in rows] == [f"a.parquet:{index}" for index in range(1100)]


def test_the_rows_of_every_file_are_told_to_the_board(near_board, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x\n" * 600)
    (tmp_path / "b.jsonl").write_bytes(b"bad\nworse\n")
    spec = InputSpec(uri=str(tmp_path))
    reader = source.PromptDatasource(spec, storage.list_files(spec.uri), near_board)
    assert sum(block.num_rows for task in reader.get_read_tasks(2) for block in task()) == 602
    now = near_board.board.snapshot()
    assert (now.rows_read, now.files_read) == (602, 2)


@pytest.mark.parametrize("anonymous", [True, False])
def test_no_secret_travels_with_the_source(cluster, bucket_uri, anonymous):
    spec = InputSpec(uri=bucket_uri, anonymous=anonymous)
    reader = source.PromptDatasource(spec, [(bucket_uri.removeprefix("s3://") + "/a.txt", 5)])
    assert cluster.secret_key.encode() not in ray.cloudpickle.dumps(reader)
