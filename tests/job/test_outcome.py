"""What a run leaves of itself, however it ends."""

import json
import re
import threading
import time

import pytest

from rayferry.job import outcome, storage
from rayferry.job.layout import Layout
from rayferry.job.outcome import Outcome, Recorder, last_part


@pytest.fixture
def layout(tmp_path):
    return Layout(str(tmp_path / "out"))


@pytest.fixture
def meta(tmp_path):
    return tmp_path / "out" / "_meta"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "job-driver-run-1.log"
    path.write_bytes(b"one\ntwo\n")
    return path


@pytest.fixture
def eventually():
    """Waits for what a thread is about to do."""

    def wait(is_so):
        deadline = time.monotonic() + 10
        while not _holds(is_so):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


def _holds(is_so):
    try:
        return is_so()
    except FileNotFoundError:
        return False


def test_the_outcome_is_exactly_this():
    ended = Outcome("run-1", "FAILED", 0.0, ended_at=61.5, exit_code=1, error="no GPU")
    assert ended.to_json() == {
        "schema_version": 1,
        "submission_id": "run-1",
        "status": "FAILED",
        "exit_code": 1,
        "error": "no GPU",
        "started_at": "1970-01-01T00:00:00Z",
        "ended_at": "1970-01-01T00:01:01Z",
    }


def test_a_run_that_goes_on_has_no_end():
    value = Outcome("run-1", "RUNNING", 0.0).to_json()
    assert (value["status"], value["exit_code"], value["ended_at"]) == ("RUNNING", None, None)


def test_the_end_writes_the_outcome_and_the_log(layout, meta, log):
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    recorder.end("SUCCEEDED", 0)
    assert json.loads((meta / "outcome.json").read_bytes())["status"] == "SUCCEEDED"
    assert (meta / "driver.log").read_bytes() == b"one\ntwo\n"


def test_the_outcome_of_the_run_before_is_replaced_at_the_start(layout, meta, log, eventually):
    storage.write_bytes(layout.outcome_uri, b'{"submission_id": "run-0", "status": "FAILED"}')
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    eventually(lambda: json.loads((meta / "outcome.json").read_bytes())["submission_id"] == "run-1")
    assert json.loads((meta / "outcome.json").read_bytes())["status"] == "RUNNING"
    recorder.end("SUCCEEDED", 0)


def test_the_log_is_copied_while_the_run_goes_on(layout, meta, log, eventually, monkeypatch):
    monkeypatch.setattr(outcome, "_SAVE_EVERY_S", 0.01)
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    log.write_bytes(b"one\ntwo\nthree\n")
    eventually(lambda: (meta / "driver.log").read_bytes() == b"one\ntwo\nthree\n")
    recorder.end("SUCCEEDED", 0)


def test_a_log_that_did_not_grow_is_not_copied_again(layout, log, monkeypatch):
    written = []
    monkeypatch.setattr(storage, "write_bytes", lambda uri, _: written.append(uri))
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    recorder.end("SUCCEEDED", 0)
    assert written.count(layout.driver_log_uri) == 1


def test_without_a_start_nothing_is_written(meta, log):
    Recorder("run-1", log).end("FAILED", 1, "the output is not empty")
    assert not meta.exists()


def test_the_first_end_counts(layout, meta, log):
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    recorder.end("TIMED_OUT", 6)
    recorder.end("FAILED", 1)
    assert json.loads((meta / "outcome.json").read_bytes())["status"] == "TIMED_OUT"


def test_nothing_is_written_beside_the_manifest_of_another_run(layout, meta, log):
    storage.write_bytes(layout.manifest_uri, b"{}")
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    recorder.end("FAILED", 1, "another one uses this output")
    assert [path.name for path in meta.iterdir()] == ["manifest.json"]


def test_the_outcome_comes_beside_the_runs_own_manifest(layout, meta, log):
    storage.write_bytes(layout.manifest_uri, b"{}")
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    recorder.end("SUCCEEDED", 0, has_manifest=True)
    assert json.loads((meta / "outcome.json").read_bytes())["status"] == "SUCCEEDED"


@pytest.mark.parametrize("error", [OSError("denied"), ValueError("unforeseen")], ids=repr)
def test_a_store_that_refuses_is_said_once(layout, log, monkeypatch, capsys, error):
    def refuse(_uri, _content):
        raise error

    monkeypatch.setattr(storage, "write_bytes", refuse)
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    recorder.end("SUCCEEDED", 0)
    assert capsys.readouterr().out.count("could not be written to") == 1


def test_a_driver_whose_output_goes_to_no_file_still_leaves_its_outcome(layout, meta, capsys):
    recorder = Recorder("run-1", None)
    recorder.start(layout)
    recorder.end("SUCCEEDED", 0)
    assert [path.name for path in meta.iterdir()] == ["outcome.json"]
    assert "the driver's log is not copied" in capsys.readouterr().out


def test_a_store_that_hangs_does_not_hold_the_end_up(layout, log, monkeypatch):
    monkeypatch.setattr(outcome, "_LAST_SAVE_S", 0.01)
    hung = threading.Event()
    monkeypatch.setattr(storage, "children", lambda _uri: hung.wait(10) and [])
    recorder = Recorder("run-1", log)
    recorder.start(layout)
    before = time.monotonic()
    recorder.end("STOPPED", 143)
    hung.set()
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("max_bytes", "kept"),
    [(8, b"one\ntwo\n"), (7, b"two\n"), (5, b"two\n"), (100, b"one\ntwo\n")],
)
def test_a_log_is_cut_at_a_lines_beginning(log, max_bytes, kept):
    assert last_part(log, max_bytes).endswith(b"copy\n" + kept if len(kept) < 8 else kept)


def test_a_log_that_was_cut_says_so_first(log):
    first = last_part(log, 7).splitlines()[0]
    assert re.fullmatch(rb"\[rayferry\] the log's first 4 bytes are not in this copy", first)


def test_a_log_of_one_long_line_is_cut_within_it(log):
    log.write_bytes(b"x" * 100)
    assert last_part(log, 10).endswith(b"copy\n" + b"x" * 10)


def test_a_log_that_fits_is_copied_as_it_is(log):
    assert last_part(log) == log.read_bytes()
