import os
import threading
from pathlib import Path

import pytest

from rayferry.job import storage, weights
from rayferry.job.errors import EngineError
from rayferry.job.spec import parse

FILES = {"config.json": b"{}", "model-00001.safetensors": b"\x00" * 5000, "sub/tokenizer.json": b"[]"}


@pytest.fixture
def model_uri(bucket_uri, tmp_path, monkeypatch):
    """A model in S3, and an empty cache."""
    monkeypatch.setenv("RAYFERRY_CACHE", str(tmp_path / "cache"))
    for name, content in FILES.items():
        storage.write_bytes(f"{bucket_uri}/model/{name}", content)
    return f"{bucket_uri}/model"


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/models/smol", "/models/smol"),
        ("file:///models/smol", "/models/smol"),
        ("file:///models/smol%20lm", "/models/smol lm"),
    ],
)
def test_a_hub_id_or_a_folder_is_taken_as_it_is(model, folder):
    assert weights.local_folder(model) == folder


@pytest.mark.parametrize("end", ["", "/"])
def test_a_prefix_is_copied_whole(model_uri, end):
    assert content_of(weights.local_folder(model_uri + end)) == FILES


def test_the_copy_lies_in_the_cache(model_uri, tmp_path):
    assert Path(weights.local_folder(model_uri)).is_relative_to(tmp_path / "cache")


def test_a_second_job_takes_the_same_copy(model_uri):
    first = Path(weights.local_folder(model_uri))
    (first / "mark").touch()
    assert (Path(weights.local_folder(model_uri)) / "mark").exists()


def test_a_model_that_changed_is_copied_anew(model_uri):
    first = weights.local_folder(model_uri)
    storage.write_bytes(model_uri + "/config.json", b'{"changed": true}')
    second = weights.local_folder(model_uri)
    assert (first != second, content_of(second)["config.json"]) == (True, b'{"changed": true}')


def test_a_copy_that_was_cut_short_is_made_again(model_uri):
    folder = Path(weights.local_folder(model_uri))
    draft = folder.with_suffix(".partial")
    folder.rename(draft)
    (draft / "config.json").unlink()
    (draft / "leftover").touch()
    assert content_of(weights.local_folder(model_uri)) == FILES


def test_no_draft_is_left_beside_a_copy(model_uri):
    folder = Path(weights.local_folder(model_uri))
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_replicas_that_start_together_take_one_copy(model_uri):
    found = []
    threads = [threading.Thread(target=lambda: found.append(weights.local_folder(model_uri))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), {len(content_of(folder)) for folder in found}, len({*found})) == (4, {len(FILES)}, 1)


def test_an_empty_prefix_is_no_model(model_uri):
    with pytest.raises(EngineError, match="no model there; check the job file's model"):
        weights.local_folder(model_uri + "/nothing")


def test_the_cache_is_in_the_home_folder_unless_told(model_uri, tmp_path, monkeypatch):
    monkeypatch.delenv("RAYFERRY_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = weights.local_folder(model_uri)
    assert os.path.commonpath([folder, str(tmp_path / "home" / ".cache" / "rayferry")]).endswith("rayferry")


def test_the_stored_files_of_a_model_and_its_adapters_change_with_their_content(model_uri):
    lora = {"adapters": {"a": model_uri + "/sub", "b": "/on/the/nodes"}}
    job = {"model": model_uri, "lora": lora, "input": {"uri": "/in"}, "output": {"uri": "/out"}}
    spec = parse(job, "job")
    first = weights.stored(spec)
    storage.write_bytes(model_uri + "/sub/tokenizer.json", b"{}")
    changed = {file.path.rpartition("/")[2] for file in set(weights.stored(spec)) - set(first)}
    assert (len(first), changed) == (3, {"tokenizer.json"})


@pytest.mark.parametrize("name", ["model[q4]", "model*", "_model"])
def test_the_stored_files_are_those_that_are_copied_whatever_their_names(bucket_uri, name):
    for path in ("config.json", "_utils.py", ".hidden/a"):
        storage.write_bytes(f"{bucket_uri}/{name}/{path}", b"x")
    spec = parse({"model": f"{bucket_uri}/{name}", "input": {"uri": "/in"}, "output": {"uri": "/out"}}, "job")
    assert [file.path.partition(f"/{name}/")[2] for file in weights.stored(spec)] == [
        ".hidden/a",
        "_utils.py",
        "config.json",
    ]


@pytest.mark.parametrize("model", ["HuggingFaceTB/SmolLM2-135M-Instruct", "/models/smol"])
def test_a_model_that_is_not_in_s3_has_no_stored_files(model):
    assert weights.stored(parse({"model": model, "input": {"uri": "/in"}, "output": {"uri": "/out"}}, "job")) == []


def test_an_adapter_that_is_not_there_is_told(model_uri):
    lora = {"adapters": {"a": model_uri + "/none"}}
    spec = parse({"model": model_uri, "lora": lora, "input": {"uri": "/in"}, "output": {"uri": "/out"}}, "job")
    with pytest.raises(EngineError, match="/none: no model there"):
        weights.stored(spec)
