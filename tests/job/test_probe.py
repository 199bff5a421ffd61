"""What a node sees of a job's input, output and model."""

import json

import pytest

from rayferry.job import probe, storage


@pytest.fixture
def place(bucket_uri):
    """A prefix of the test's own on S3, with one input file and one model file."""
    storage.write_bytes(f"{bucket_uri}/in/a.txt", b"hello\n")
    storage.write_bytes(f"{bucket_uri}/model/config.json", b"{}")
    return bucket_uri


@pytest.fixture
def seen(make_spec, place):
    """What is seen of a job with these changes."""

    def look(*, may_hold=False, **changes):
        there = {"model": f"{place}/model", "input": {"uri": f"{place}/in/"}, "output": {"uri": f"{place}/out/"}}
        return probe.look(make_spec(**there | changes), may_hold=may_hold)

    return look


def test_what_is_there_is_told(seen, place):
    assert seen() == {
        "input": ("ok", f"{place}/in/: 1 file, 6 bytes"),
        "output": ("ok", f"{place}/out/: empty, and can be written"),
        "model": ("ok", f"{place}/model: there"),
    }


def test_the_look_leaves_nothing_that_a_run_would_stumble_over(seen):
    assert seen()["output"] == seen()["output"]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("input", {"input": {"uri": "s3://{bucket}/none/"}}, "no input there"),
        ("input", {"input": {"uri": "/nowhere/at/all"}}, "/nowhere/at/all"),
        ("model", {"model": "s3://{bucket}/none"}, "no model there"),
        ("model", {"model": "/nowhere/at/all"}, "no model there"),
    ],
)
def test_what_is_not_there_fails_its_own_check_alone(seen, place, name, changes, says):
    found = seen(**json.loads(json.dumps(changes).replace("s3://{bucket}", place)))
    assert found.pop(name)[0] == "failed"
    assert {outcome for outcome, _ in found.values()} == {"ok"}
    assert says in seen(**json.loads(json.dumps(changes).replace("s3://{bucket}", place)))[name][1]


@pytest.mark.parametrize(("may_hold", "outcome"), [(False, "failed"), (True, "ok")])
def test_an_output_that_holds_something_is_refused_unless_it_may(seen, place, may_hold, outcome):
    storage.write_bytes(f"{place}/out/data/a.parquet", b"x")
    assert seen(may_hold=may_hold)["output"][0] == outcome


def test_an_output_that_cannot_be_written_is_refused(seen, monkeypatch):
    def refused(uri, content):
        raise OSError("AWS Error ACCESS_DENIED")

    monkeypatch.setattr(storage, "write_bytes", refused)
    outcome, text = seen()["output"]
    assert (outcome, "cannot be written: AWS Error ACCESS_DENIED; check the permissions" in text) == ("failed", True)


def test_a_folder_without_a_config_is_no_model(seen, tmp_path):
    (tmp_path / "weights").touch()
    assert "no config.json" in seen(model=str(tmp_path))["model"][1]


def test_a_hub_id_is_left_to_the_replicas(seen):
    assert seen(model="org/model")["model"] == ("ok", "org/model: a hub id; the replicas load it when they start")


def test_a_secret_that_cannot_be_had_fails_all(seen):
    found = seen(runtime_env={"secrets": {"HF_TOKEN": "file:/nowhere/at/all"}})
    assert {outcome for outcome, _ in found.values()} == {"failed"}
    assert "HF_TOKEN" in found["input"][1]


def test_the_answer_is_one_line(make_spec, place, tmp_path, capsys):
    spec = make_spec(model="org/model", input={"uri": f"{place}/in/"}, output={"uri": f"{place}/out/"})
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    assert probe.main([str(tmp_path / "spec.json")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert set(json.loads(line.removeprefix(probe.MARK))) == {"input", "output", "model"}
