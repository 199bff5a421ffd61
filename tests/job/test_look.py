import pyarrow as pa
import pytest

from rayferry.job import identity
from rayferry.job.errors import JobError
from rayferry.job.look import _decompressed, look

MIB = 1 << 20
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}}\n'


@pytest.fixture
def looked(tmp_path, make_spec):
    """What a look at files shows."""

    def look_at(files, before=None, **options):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return look(make_spec(input={"uri": str(tmp_path), **options}), before)

    return look_at


def test_a_look_tells_every_format_that_there_is_and_what_decided(looked, tmp_path):
    found = looked({"a.txt": b"x\n", "b": b'{"text": "a"}\n', "c.json": b'[{"text": "a"}]', "d.csv": b"text\na\n"})
    assert found.formats == {
        "text": (f"{tmp_path}/a.txt", ""),
        "jsonl": (f"{tmp_path}/b", "it holds JSON lines"),
        "json": (f"{tmp_path}/c.json", ""),
        "csv": (f"{tmp_path}/d.csv", ""),
    }


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', ("jsonl", "it holds JSON lines")),
        ("a.jsonl", b'[\n{"text": "a"}\n]', ("json", "it holds one JSON document")),
        ("a.json", LINE, ("openai", "it holds OpenAI batch lines")),
    ],
)
def test_a_look_tells_what_a_json_file_is_in_truth(looked, tmp_path, name, content, told):
    format_, reason = told
    assert looked({name: content}).formats == {format_: (f"{tmp_path}/{name}", reason)}


def test_a_look_tells_files_and_sizes(looked, tmp_path):
    found = looked({"a.txt": b"x\n", "b.txt": b"123"})
    files = [(file.path, file.num_bytes, file.version > "") for file in found.files]
    assert (found.num_bytes, files) == (5, [(f"{tmp_path}/a.txt", 2, True), (f"{tmp_path}/b.txt", 3, True)])


@pytest.mark.parametrize("files", [{"a.jsonl": LINE, "b.json": LINE}, {"a.jsonl": LINE, "b.txt": b"x\n"}])
def test_openai_lines_are_found_by_their_content(looked, files):
    assert looked(files).openai


def test_a_look_does_not_unpack_more_than_it_needs(looked):
    bomb = pa.compress(b"\0" * (128 * MIB), "zstd", asbytes=True)
    assert len(bomb) < 1 << 16
    before = pa.total_allocated_bytes()
    _decompressed(bomb, "zstd")
    assert pa.total_allocated_bytes() - before < MIB


def state_of(found):
    """What a run that began with this input keeps of it."""
    return identity.asked({}, found.files) | {"columns": found.columns.to_json(), "openai": found.openai}


def test_files_that_came_since_are_last_and_add_their_columns_without_changing_the_others(looked):
    first = looked({"b.jsonl": b'{"text": "x", "n": 1}\n'})
    more = looked({"a.jsonl": b'{"more": [1], "text": "y", "n": "one"}\n'}, state_of(first))
    again = looked({"0.jsonl": b'{"text": "z", "n": 1.5, "more": true}\n'}, state_of(more))
    assert [file.label for file in again.files] == ["b.jsonl", "a.jsonl", "0.jsonl"]
    assert [(field.name, str(field.type)) for field in again.columns.schema] == [
        ("text", "string"),
        ("n", "int64"),
        ("more", "list<item: int64>"),
        ("rescued_data", "string"),
    ]
    assert (again.columns, again.copied) == (more.columns, "text")


def test_openai_lines_do_not_come_to_a_run_without_any(looked):
    first = looked({"b.jsonl": b'{"text": "x"}\n'})
    with pytest.raises(JobError, match=r"a.jsonl has OpenAI batch lines, and the run was begun without any"):
        looked({"a.jsonl": LINE}, state_of(first))


def test_a_run_of_openai_lines_stays_one(looked):
    first = looked({"b.jsonl": LINE})
    files = {f"a{at:03d}.txt": b"x\n" for at in range(64)}  # of which some are looked at, and not the first
    found = looked(files, state_of(first) | {"files": []})
    assert ("openai" in found.formats, found.openai) == (False, True)
