"""What a node sees of a job's input, output and model."""

import json
import os
import subprocess
import sys
import time

import pytest

from rayferry.job import arguments, identity, placement, probe, storage
from rayferry.job.earlier import NOTHING_EARLIER, Earlier

ON_S3 = ("input", "rows", "output", "model")


@pytest.fixture
def place(bucket_uri):
    """A prefix of the test's own on S3, with one input file and one model file."""
    storage.write_bytes(f"{bucket_uri}/in/a.txt", b"hello\n")
    storage.write_bytes(f"{bucket_uri}/model/config.json", b"{}")
    return bucket_uri


@pytest.fixture
def seen(make_spec, place):
    """What is seen of a job with these changes."""

    def look(*, names=ON_S3, earlier=NOTHING_EARLIER, **changes):
        there = {"model": f"{place}/model", "input": {"uri": f"{place}/in/"}, "output": {"uri": f"{place}/out/"}}
        return probe.look(make_spec(**there | changes), names, earlier)

    return look


def test_what_is_there_is_told(seen, place):
    assert seen() == {
        "input": ("ok", f"{place}/in/: 1 file, 6 bytes"),
        "rows": ("ok", f"{place}/in/: the first 1 row is good"),
        "output": ("ok", f"{place}/out/: empty, and can be written"),
        "model": ("ok", f"{place}/model: there"),
    }


@pytest.mark.parametrize(
    ("engine", "outcome", "text"),
    [
        ({"max_num_seqs": 2, "some_new_one": 1}, "ok", "engine: vLLM 0.99 has every argument"),
        (
            {"some_new": 1},
            "failed",
            "engine.some_new: vLLM 0.99 has no such argument; did you mean 'some_new_one'? (the head's vLLM; --skip",
        ),
    ],
)
def test_the_heads_vllm_is_asked_for_engine_arguments(make_spec, monkeypatch, engine, outcome, text):
    names = frozenset({"tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "some_new_one"})
    monkeypatch.setattr(arguments, "known", lambda: arguments.Known("0.99", names))
    found = probe.look(make_spec(engine=engine), ["engine"])["engine"]
    assert (found[0], found[1].startswith(text)) == (outcome, True)


def test_a_head_without_vllm_says_nothing_of_engine_arguments(make_spec, monkeypatch):
    monkeypatch.setattr(arguments, "known", lambda: None)
    found = probe.look(make_spec(engine={"some_new": 1}), ["engine"])
    assert found == {"engine": ("unknown", "engine: the head has no vLLM to ask")}


def test_the_look_leaves_nothing_that_a_run_would_stumble_over(seen):
    assert [seen()["output"][0] for _ in range(2)] == ["ok", "ok"]


def test_only_what_is_asked_is_looked_at(seen, place):
    assert list(seen(names=["input"])) == ["input"]
    assert storage.children(f"{place}/out/") == []


def test_a_store_that_does_not_answer_is_told_in_time(seen, monkeypatch):
    monkeypatch.setattr(probe, "_LIMIT_S", 0.2)
    monkeypatch.setattr(storage, "list_files", lambda *_args, **_options: time.sleep(5))
    assert seen(names=["input"])["input"] == ("unknown", "no answer in 0.2 s; do the nodes reach the store?")


def test_stores_that_do_not_answer_take_one_limit_together(seen, monkeypatch):
    monkeypatch.setattr(probe, "_LIMIT_S", 0.5)
    monkeypatch.setattr(storage, "list_files", lambda *_args, **_options: time.sleep(5))
    monkeypatch.setattr(storage, "children", lambda _uri: time.sleep(0.9) or ["config.json"])  # within a second limit
    assert {outcome for outcome, _ in seen(names=["input", "model"]).values()} == {"unknown"}


def test_a_folder_that_the_head_has_not_may_be_on_other_nodes(seen):
    assert seen(model="/nowhere/at/all")["model"] == (
        "unknown",
        "/nowhere/at/all: not a folder of the head; it has to be one of the nodes that run replicas",
    )


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("input", {"input": {"uri": "s3://{bucket}/none/"}}, "no input there"),
        ("input", {"input": {"uri": "/nowhere/at/all"}}, "/nowhere/at/all"),
        ("model", {"model": "s3://{bucket}/none"}, "no model there"),
    ],
)
def test_what_is_not_there_fails_its_own_check_alone(seen, place, name, changes, says):
    found = seen(**json.loads(json.dumps(changes).replace("s3://{bucket}", place)))
    assert found.pop(name)[0] == "failed"
    assert found.pop("rows")[0] == ("unknown" if name == "input" else "ok")
    assert {outcome for outcome, _ in found.values()} == {"ok"}
    assert says in seen(**json.loads(json.dumps(changes).replace("s3://{bucket}", place)))[name][1]


@pytest.mark.parametrize(
    ("earlier", "outcome"),
    [(NOTHING_EARLIER, "failed"), (Earlier(resume=True), "failed"), (Earlier(overwrite=True), "ok")],
)
def test_an_output_that_holds_something_of_somebody_is_refused_unless_it_may_go(seen, place, earlier, outcome):
    storage.write_bytes(f"{place}/out/data/a.parquet", b"x")
    assert seen(earlier=earlier)["output"][0] == outcome


def test_a_run_that_was_begun_with_another_job_file_is_refused(seen, place):
    state = {"schema_version": identity.SCHEMA_VERSION, "run": "r", "settings": {"model": "another"}, "files": []}
    storage.write_bytes(f"{place}/out/_meta/run.json", json.dumps(state).encode())
    outcome, text = seen(earlier=Earlier(resume=True))["output"]
    assert (outcome, "was begun with another job file" in text) == ("failed", True)
    assert seen(earlier=Earlier(overwrite=True))["output"][0] == "ok"


def test_an_output_that_cannot_be_written_is_refused(seen, monkeypatch):
    def refused(uri, content):
        raise OSError("AWS Error ACCESS_DENIED")

    monkeypatch.setattr(storage, "write_bytes", refused)
    outcome, text = seen()["output"]
    assert (outcome, "cannot be written: AWS Error ACCESS_DENIED; check the permissions" in text) == ("failed", True)


def test_a_folder_without_a_config_is_no_model(seen, tmp_path):
    (tmp_path / "weights").touch()
    outcome, text = seen(model=str(tmp_path))["model"]
    assert (outcome, "no config.json" in text) == ("unknown", True)  # the head's may be an empty mount point


def test_a_fault_of_the_look_refuses_nothing(seen, monkeypatch):
    monkeypatch.setattr(storage, "list_files", lambda *_args, **_options: {}["x"])
    assert seen(names=["input"])["input"] == ("unknown", "the look broke off: KeyError: 'x'")


def test_input_and_rows_take_one_listing(seen, monkeypatch):
    listings, list_files = [], storage.list_files

    def listed(*args, **options):
        listings.append(args)
        return list_files(*args, **options)

    monkeypatch.setattr(storage, "list_files", listed)
    assert {outcome for outcome, _ in seen(names=["input", "rows"]).values()} == {"ok"}
    assert len(listings) == 1


def test_the_capacity_is_asked_by_the_module_itself(stack, make_spec, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(make_spec(resources={"device": "gpu"}).to_json()))
    words = [sys.executable, "-m", "rayferry.job.probe", str(tmp_path / "spec.json"), "capacity"]
    env = os.environ | {"RAY_ADDRESS": stack.gcs_address}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=120)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(probe.MARK)]
    name, outcome, text = json.loads(line.removeprefix(probe.MARK))
    assert (done.returncode, name, outcome, "no node has any" in text) == (0, "capacity", "failed", True)


def test_a_secret_that_cannot_be_had_fails_all(seen):
    found = seen(runtime_env={"secrets": {"HF_TOKEN": "file:/nowhere/at/all"}})
    assert {outcome for outcome, _ in found.values()} == {"failed"}
    assert "HF_TOKEN" in found["input"][1]


def test_each_answer_is_a_line(make_spec, place, tmp_path, capsys):
    spec = make_spec(model="org/model", input={"uri": f"{place}/in/"}, output={"uri": f"{place}/out/"})
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    assert probe.main([str(tmp_path / "spec.json"), "input", "output", "--resume"]) == 0
    lines = [json.loads(line.removeprefix(probe.MARK)) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["input", "ok"], ["output", "ok"]]


def test_rows_that_are_all_bad_are_told_with_the_first(seen, place):
    storage.write_bytes(f"{place}/lines/a.jsonl", b'{"txt": "a"}\n')
    outcome, text = seen(names=["rows"], input={"uri": f"{place}/lines/"})["rows"]
    assert (outcome, f"{place}/lines/a.jsonl, row 0: MissingColumn: no column 'text'" in text) == ("failed", True)


def test_a_cluster_that_holds_the_replicas_says_so(cluster, seen):
    assert seen(names=["capacity"])["capacity"][0] == "ok"


def test_a_cluster_that_can_never_hold_the_replicas_says_so(cluster, seen):
    outcome, text = seen(names=["capacity"], resources={"device": "gpu"})["capacity"]
    assert (outcome, "no node has any" in text) == ("failed", True)


def test_what_an_autoscaler_may_start_is_unknown_where_it_does_not_tell(cluster, seen, monkeypatch):
    monkeypatch.setattr(placement, "can_grow", lambda *_args: True)
    monkeypatch.setattr(placement, "most_here", lambda: None)
    outcome, text = seen(names=["capacity"], resources={"device": "gpu"})["capacity"]
    assert (outcome, "does not tell what its autoscaler may start" in text) == ("unknown", True)
