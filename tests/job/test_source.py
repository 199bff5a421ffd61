import bz2
import datetime as dt
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rayferry.job import source, storage
from rayferry.job.columns import Columns
from rayferry.job.ids import find_repeated
from rayferry.job.look import Input, look
from rayferry.job.row_maker import RowMaker
from rayferry.job.rows import with_copy


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
    ("name", "content"),
    [
        ("a.txt", b"one\n\ntwo\n"),
        ("a.jsonl", b'{"text": "one"}\n\n{"prompt": "two"}'),
        ("a", b'{"text": "one"}\n\n{"text": "two"}'),
        ("a.txt", parquet({"text": ["one", "", "two"]})),
    ],
)
def test_the_content_decides_where_the_name_does_not(read_rows, name, content):
    assert good(read_rows({name: content})) == [(f"{name}:0", "one"), (f"{name}:2", "two")]


def test_a_declared_format_wins_over_the_suffix(read_rows):
    assert good(read_rows({"a.txt": b'{"text": "one"}\n'}, format="jsonl")) == [("a.txt:0", "one")]


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
        ("a.txt", b"ok\n\xff\n", [("a.txt:1", "decode", "UnicodeDecodeError")]),
        ("a.jsonl", b'{"text": "a"}\n{"text":\n', [("a.jsonl:1", "parse", "JSONDecodeError")]),
        ("a.jsonl", b'[1]\n"x"\n', [("a.jsonl:0", "parse", "ValueError"), ("a.jsonl:1", "parse", "ValueError")]),
        ("a.jsonl", b'{"other": "a"}\n', [("a.jsonl:0", "parse", "MissingColumn")]),
        ("a.json", b'[{"text": ""}, {"text": 5}]', [(f"a.json:{at}", "parse", "BadPrompt") for at in range(2)]),
        ("a.csv", b"text,n\none\n", [("a.csv:0", "parse", "ValueError")]),
        ("a.csv", b'text\n""\n', [("a.csv:0", "parse", "BadPrompt")]),
        ("a.parquet", parquet({"text": ["a", None]}), [("a.parquet:1", "parse", "BadPrompt")]),
        ("a.parquet", parquet({"text": [1.5]}), [("a.parquet:0", "parse", "BadPrompt")]),
        ("a.parquet", b"PAR1\0\0", [("a.parquet:0", "read", "ArrowInvalid")]),
        ("a.bin", b"\x89PNG\xff", [("a.bin:0", "decode", "UnicodeDecodeError")]),
        ("a.txt.gz", gzip.compress(b"one\n")[:-4], [("a.txt.gz:1", "read", "OSError")]),
        ("a.parquet.gz", gzip.compress(parquet({"text": ["a"]}))[:-20], [("a.parquet.gz:0", "read", "ArrowInvalid")]),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_by_its_stage_and_kind(read_rows, name, content, rows):
    assert [(row["id"], row["stage"], row["error_type"]) for row in read_rows({name: content}) if row["stage"]] == rows


@pytest.mark.parametrize(
    ("line", "job", "options"),
    [
        (b'{"text": "ok", "a": ["fr"]}', {"lora": {"adapters": {"fr": "/fr"}}}, {"adapter_column": "a"}),
        (b'{"text": "ok", "n": 55296}', {}, {"template": "{{ '%c' % n }}"}),
        (b'{"text": "ok", "n": 1e999}', {}, {"template": "{{ n|int }}"}),
        (b"[" * 100_000, {}, {}),
        (rb'{"text": "\ud800"}', {}, {}),
    ],
    ids=["list for a name", "surrogate by template", "infinite", "deep", "surrogate"],
)
def test_a_hostile_line_fails_alone(read_rows, line, job, options):
    fine = b'{"text": "fine", "n": 97}\n'
    rows = read_rows({"a.jsonl": fine + line + b"\n" + fine}, job=job, **options)
    assert [row["stage"] is None for row in rows] == [True, False, True]


@pytest.mark.parametrize("depth", range(900, 1000, 7))
def test_no_depth_of_messages_ends_the_reading(read_rows, depth):
    line = '{"messages": [{"role": "user", "content": ' + "[" * depth + "]" * depth + "}]}\n"
    assert len(read_rows({"a.jsonl": line.encode() * 2}, job={"task": "chat"})) == 2


def test_a_csv_file_whose_header_is_no_utf8_does_not_end_the_run(read_rows):
    rows = read_rows({"a.csv": "größe,text\n1,a\n2,b\n".encode("latin-1"), "b.txt": b"ok\n"})
    assert [row["id"] for row in rows] == ["a.csv:0", "a.csv:1", "b.txt:0"]


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


def test_a_bad_row_has_no_prompt(read_rows):
    (row,) = read_rows({"a.jsonl": b'{"text": 5}\n'})
    assert row["prompt"] is None


def test_a_row_has_its_place_in_the_input(read_rows, tmp_path):
    row = read_rows({"sub/a.txt": b"one\n\ntwo\n"})[1]
    assert (row["source_uri"], row["position"]) == (f"{tmp_path}/in/sub/a.txt", 2)


def test_chat_messages_are_read_from_parquet(read_rows):
    messages = [{"role": "user", "content": "Hi"}]
    (row,) = read_rows({"a.parquet": parquet({"messages": [messages]})}, job={"task": "chat"})
    assert (json.loads(row["prompt"]), json.loads(row["request"])["messages"]) == (messages, messages)


@pytest.mark.parametrize("end", [b"", b"not JSON\n"], ids=["a table", "line by line"])
def test_a_row_comes_out_the_same_whatever_is_next_to_it(read_rows, end):
    lines = b'{"text": "a", "n": 1}\n{"prompt": "b"}\n{"n": 2}\n{"text": null, "n": 3}\n'
    rows = read_rows({"a.jsonl": lines + end})[:4]
    told = [(row["prompt"], row["error_type"], row["raw"], row["n"]) for row in rows]
    assert told == [
        ("a", None, None, 1),
        ("b", None, None, None),
        (None, "MissingColumn", '{"n": 2}', None),
        (None, "BadPrompt", '{"text": null, "n": 3}', None),
    ]


def test_an_id_column_names_the_rows(read_rows):
    rows = read_rows({"a.jsonl": b'{"text": "a", "key": "k1"}\n{"text": "b", "key": 2}\n'}, id_column="key")
    assert [row["id"] for row in rows] == ["k1", "2"]


@pytest.mark.parametrize(
    "lines", [b'{"text": "a", "key": "k"}\n' * 3, b'{"text": "", "key": "k"}\n' * 3], ids=["good", "bad"]
)
def test_the_first_row_of_an_id_keeps_it_and_the_others_fail(tmp_path, cluster, make_spec, lines):
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl").write_bytes(lines)
    spec = make_spec(input={"uri": str(tmp_path), "id_column": "key"})
    found = look(spec)
    repeated = find_repeated(found.filesystem, found.files, RowMaker(spec, found).names)
    reader = source.PromptDatasource(spec, found, None, repeated)
    rows = [row for task in reader.get_read_tasks(1) for block in task() for row in block.to_pylist()]
    assert [(row["id"], row["error_type"]) for row in rows][1:] == [
        (f"{name}:{at}", "DuplicateId")
        for name, at in [("a.jsonl", 1), ("a.jsonl", 2), *(("b.jsonl", at) for at in range(3))]
    ]
    assert (rows[0]["id"], rows[5]["error"]) == ("k", "the id 'k' is that of a.jsonl:0 too")


def test_a_bad_row_keeps_the_id_of_its_id_column(read_rows):
    (row,) = read_rows({"a.jsonl": b'{"text": "", "key": "k1"}\n'}, id_column="key")
    assert row["id"] == "k1"


@pytest.mark.parametrize("line", [b'{"text": "a"}', b'{"text": "a", "key": null}'])
def test_a_row_without_its_id_is_bad(read_rows, line):
    assert bad(read_rows({"a.jsonl": line}, id_column="key")) == [("a.jsonl:0", "MissingId")]


def test_the_inputs_own_columns_come_out(carry):
    data, _ = carry({"a.jsonl": b'{"text": "a", "n": 5, "tags": ["x"], "meta": {"k": null}}\n'})
    assert {name: data[0][name] for name in ("text", "n", "tags", "meta", "rescued_data")} == {
        "text": "a",
        "n": 5,
        "tags": ["x"],
        "meta": '{"k": null}',
        "rescued_data": None,
    }


def test_own_columns_of_our_names_come_out_under_another(carry):
    line = {"text": "p", "id": "i", "model": "m2", "prompt": "q", "error": "e", "rescued_data": "r", "input_id": "j"}
    data, _ = carry({"a.jsonl": json.dumps(line).encode()})
    assert {name: data[0][name] for name in data[0] if name.startswith("input_")} == {
        f"input_{name}": value for name, value in line.items() if name != "text"
    }


@pytest.mark.parametrize(
    ("record", "options", "names"),
    [
        ({"prompt": "p", "n": 1}, {}, ["n"]),
        ({"prompt": "p", "n": 1}, {"column": "prompt"}, ["n"]),
        ({"prompt": "p", "text": "t"}, {}, ["input_prompt", "text"]),
        ({"prompt": "p", "n": "t"}, {"column": "n"}, ["input_prompt", "n"]),
        ({"prompt": "p"}, {"template": "{{ prompt }}!"}, ["input_prompt"]),
    ],
)
def test_the_column_prompt_is_not_kept_twice_if_it_is_the_prompt(carry, record, options, names):
    (row,), _ = carry({"a.jsonl": json.dumps(record).encode()}, **options)
    assert [*row][7:] == [*names, "rescued_data"]


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("a.jsonl", b'{"text": "p", "n": "first", "n": "last"}\n', {"n": "last"}),
        ("a.csv", b"text,n,n\np,first,last\n", {"n": "first", "n_2": "last"}),
    ],
)
def test_columns_of_one_name_are_told_apart_where_the_format_allows(carry, name, content, kept):
    data, _ = carry({name: content})
    assert {column: data[0][column] for column in kept} == kept


def test_parquet_columns_of_one_name_and_of_none_are_told_apart(carry):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([["p"], [1], [2], [3]], ["text", "n", "n", ""]), stream)
    (row,), _ = carry({"a.parquet": stream.getvalue()})
    assert (row["n"], row["n_2"], row["column_4"], row["rescued_data"]) == (1, 2, 3, None)


def test_text_has_no_column_for_what_does_not_fit(carry):
    (row,), _ = carry({"a.txt": b"p\n"})
    assert "rescued_data" not in row


def test_own_columns_follow_those_of_the_contract_in_their_own_order(carry):
    data, _ = carry({"a.jsonl": b'{"z": 1, "text": "a", "b": 2}\n'})
    assert [*data[0]][7:] == ["z", "text", "b", "rescued_data"]


def test_rows_with_differing_columns_are_filled_with_null(carry):
    data, _ = carry({"a.jsonl": b'{"text": "a", "x": 1}\n{"text": "b", "y": 2}\n'})
    assert [(row["x"], row["y"]) for row in data] == [(1, None), (None, 2)]


def test_what_the_sample_did_not_show_is_rescued(carry):
    lines = b'{"text": "a", "n": 1}\n' * 2_000 + b'{"text": "b", "n": 1.5, "new": [1]}\n'
    data, _ = carry({"a.jsonl": lines})
    assert (len(data), data[-1]["n"], json.loads(data[-1]["rescued_data"])) == (2_001, None, {"new": [1], "n": 1.5})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, "s"),
        (1, 2**63),
        (True, 1),
        (1, 1.5),
        ([1], ["s"]),
        ({"a": 1}, "s"),
        ({"a": 1}, {"b": 2}),
        (None, {"a": 1}),
        ([], [1]),
        ({}, {"a": 1}),
    ],
    ids=str,
)
def test_values_of_differing_types_in_different_files_are_all_kept(carry, first, second):
    values = {"a.jsonl": first, "b.jsonl": second}
    data, _ = carry({name: json.dumps({"text": name, "v": value}).encode() for name, value in values.items()})
    kept = [json.loads(row["rescued_data"])["v"] if row["rescued_data"] else row["v"] for row in data]
    assert [one if one == value else json.loads(one) for one, value in zip(kept, values.values(), strict=True)] == [
        first,
        second,
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([7], pa.int32()), 7),
        (pa.array([b"\xff"]), b"\xff"),
        (pa.array([2**63], pa.uint64()), 2**63),
        (pa.array([0], pa.date32()), dt.date(1970, 1, 1)),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), [("a", 1)]),
        (pa.array([{"a": [1, None]}]), {"a": [1, None]}),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.nulls(1), None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
@pytest.mark.parametrize("texts", [["p"], ["p", ""]], ids=["as a table", "row by row"])
def test_every_type_of_a_parquet_column_is_carried(carry, column, value, texts):
    data, _ = carry({"a.parquet": parquet({"text": texts, "v": pa.concat_arrays([column] * len(texts))})})
    assert [(row["v"], row["rescued_data"]) for row in data] == [(value, None)]


@pytest.mark.parametrize("texts", [["p"], ["p", ""]], ids=["as a table", "row by row"])
def test_a_time_past_pythons_years_is_carried_as_it_is(read, texts):
    times = pa.array([2**62] * len(texts), pa.timestamp("us"))
    (block,) = read({"a.parquet": parquet({"text": texts, "t": times})})
    assert block.column("t")[0].cast(pa.int64()).as_py() == 2**62


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


def test_a_file_given_by_itself_names_its_rows_by_its_own_name(cluster, tmp_path, make_spec):
    (tmp_path / "a.txt").write_bytes(b"p\n")
    spec = make_spec(input={"uri": str(tmp_path / "a.txt")})
    reader = source.PromptDatasource(spec, look(spec))
    assert [block.column("id").to_pylist() for task in reader.get_read_tasks(1) for block in task()] == [["a.txt:0"]]


def test_blocks_stay_small(read):
    assert [block.num_rows for block in read({"a.txt": b"x\n" * 1100})] == [512, 512, 76]


def test_ids_go_on_over_blocks(read_rows):
    rows = read_rows({"a.parquet": parquet({"text": ["x"] * 1100})})
    assert [row["id"] for row in rows] == [f"a.parquet:{index}" for index in range(1100)]


def test_the_rows_of_every_file_are_told_to_the_board(near_board, tmp_path, make_spec):
    (tmp_path / "a.txt").write_bytes(b"x\n" * 600)
    (tmp_path / "b.jsonl").write_bytes(b"bad\nworse\n")
    spec = make_spec(input={"uri": str(tmp_path)})
    reader = source.PromptDatasource(spec, look(spec), near_board)
    assert sum(block.num_rows for task in reader.get_read_tasks(2) for block in task()) == 602
    now = near_board.board.snapshot()
    assert (now.rows_read, now.files_read) == (602, 2)


@pytest.mark.parametrize("anonymous", [True, False])
def test_no_secret_travels_with_the_source(cluster, bucket_uri, make_spec, anonymous):
    spec = make_spec(input={"uri": bucket_uri, "anonymous": anonymous})
    filesystem, path = storage.filesystem(bucket_uri, anonymous=anonymous)
    found = Input(filesystem, [storage.File(path + "/a.txt", 5, "a.txt")], {}, False, Columns())
    reader = source.PromptDatasource(spec, found)
    assert cluster.secret_key.encode() not in ray.cloudpickle.dumps(reader)


LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.txt", b"x\n\ny\n"),
        ("b.jsonl", b'{"text": "x"}\n\n{"text": "y"}\n'),
        ("b.parquet", parquet({"text": ["x", "y"]})),
    ],
)
def test_every_row_of_a_file_of_another_format_beside_openai_lines_is_an_error(read_rows, name, content):
    rows = read_rows({"a.jsonl": LINE, name: content})
    assert good(rows) == [("a", "p")]
    assert [(row["stage"], row["raw"]) for row in rows[1:]] == [("parse", f'{{"text": "{text}"}}') for text in "xy"]


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"x")[:-9], b"\x1f\x8b\xff", b"PAR1\xff", b"\xff\xfe\0", b"[", b"\n", b"{", b'"', b"\0"],
    ids=repr,
)
@pytest.mark.parametrize("name", ["a", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.txt.gz", "a.parquet.gz", "a.bin"])
def test_no_broken_file_ends_a_look_or_the_reading(read_rows, name, content):
    rows = read_rows({name: content, "z.txt": b"fine\n"})
    assert good(rows)[-1] == ("z.txt:0", "fine")


@pytest.mark.parametrize(
    "bad", ["", '{"text": ""}\n', "nothing\n"], ids=["as a table", "row by row", "with a bad line"]
)
def test_an_own_column_that_is_the_prompt_travels_once(cluster, tmp_path, make_spec, bad):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n' + bad)
    spec = make_spec(input={"uri": str(tmp_path / "a.jsonl")})
    found = look(spec)
    (block,) = [block for task in source.PromptDatasource(spec, found).get_read_tasks(1) for block in task()]
    assert block.column("text").null_count == block.num_rows
    assert with_copy(block, found.copied).column("text").to_pylist() == block.column("prompt").to_pylist()


def test_a_column_that_is_the_prompt_of_some_rows_only_is_kept_as_it_is(read):
    files = {"a.jsonl": b'{"text": "one"}\n', "b.jsonl": b'{"prompt": "two"}\n', "c.txt": b"three\n"}
    rows = [row for block in read(files) for row in block.to_pylist()]
    assert [(row["prompt"], row["text"]) for row in rows] == [("one", "one"), ("two", None), ("three", "three")]
