import pyarrow as pa
import pytest

from rayferry.job.look import _decompressed, look

MIB = 1 << 20
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}}\n'


@pytest.fixture
def looked(tmp_path, make_spec):
    """What a look at files shows."""

    def look_at(files, **options):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return look(make_spec(input={"uri": str(tmp_path), **options}))

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
    files = [(file.path, file.num_bytes, file.modified_ns > 0) for file in found.files]
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
