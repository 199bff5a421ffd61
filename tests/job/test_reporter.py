import json
import time

import pytest

from rayferry.job import reporter as reporter_module
from rayferry.job.progress import Snapshot
from rayferry.job.reporter import Reporter, describe, waiting

DATA = {"kind": "data", "num_rows": 10, "num_input_tokens": 30, "num_generated_tokens": 20}
PREVIEW = [{"prompt": "Water boils at", "generated_text": "100 °C"}, {"prompt": "b", "generated_text": "c"}]


@pytest.fixture
def reporter(near_board, tmp_path):
    """Prepares a reporter of a run of one file."""
    return lambda preview_rows=0: Reporter(near_board, str(tmp_path / "progress.json"), 1, preview_rows)


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (Snapshot(), "0 of 0+ rows written"),
        (Snapshot(rows_read=5000, files_read=1, succeeded=1200), "1,200 of 5,000+ rows written"),
        (Snapshot(rows_read=5000, files_read=2, succeeded=1200), "1,200 of 5,000 rows written"),
        (Snapshot(rows_read=9, files_read=2, succeeded=6, failed=3), "9 of 9 rows written, 3 failed"),
        (
            Snapshot(rows_read=9, files_read=2, succeeded=9, ready_at=100.0, num_generated_tokens=20_000),
            "9 of 9 rows written, 2,000 tokens/s",
        ),
        (Snapshot(files_read=2, ready_at=110.0, num_generated_tokens=1), "0 of 0 rows written, 1,000 tokens/s"),
        (Snapshot(files_read=2, ready_at=100.0), "0 of 0 rows written"),
    ],
)
def test_a_line_for_people_says_how_far_the_run_is(now, line):
    assert describe(now, 2, lambda: 110.0) == line


def test_a_run_that_is_over_at_once_still_quotes_its_first_answers(near_board, reporter, capsys):
    with reporter(preview_rows=1):
        near_board.board.parts_written("r-0", [DATA], PREVIEW)
    assert "preview: 'Water boils at' -> '100 °C'" in capsys.readouterr().out


def test_no_answer_is_quoted_unasked(near_board, reporter, capsys):
    with reporter():
        near_board.board.parts_written("r-0", [DATA], PREVIEW)
    assert "Water" not in capsys.readouterr().out


def test_the_thread_ends_with_the_block(reporter):
    with reporter() as running:
        pass
    assert not running._thread.is_alive()


def test_counts_are_saved_as_json(reporter, tmp_path):
    reporter()._save(Snapshot(rows_read=9))
    assert json.loads((tmp_path / "progress.json").read_bytes())["rows_read"] == 9


def test_counts_that_cannot_be_saved_do_not_end_the_run(near_board, tmp_path, capsys):
    (tmp_path / "file").touch()
    Reporter(near_board, str(tmp_path / "file" / "progress.json"), 1, 0)._save(Snapshot())
    assert "could not be written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("free", "there", "num_pending", "end"),
    [
        (
            {"GPU": 1.0, "CPU": 3.0},
            {"GPU": 4.0, "CPU": 8.0},
            2,
            "1 of 4 GPUs, 3 of 8 CPUs; waiting for 2 placement groups",
        ),
        ({"CPU": 3.0}, {"GPU": 4.0, "CPU": 8.0}, 0, "0 of 4 GPUs, 3 of 8 CPUs; if no model is loading"),
        ({"CPU": 1.0}, {"CPU": 2.0}, 0, "free on the cluster: 1 of 2 CPUs"),
        ({}, {}, 0, "free on the cluster: nothing"),
    ],
)
def test_a_run_without_replicas_says_what_is_free(free, there, num_pending, end):
    line = waiting(free, there, num_pending)
    assert line.startswith("free on the cluster: ")
    assert end in line


def test_a_run_without_replicas_says_so_in_its_log(cluster, near_board, reporter, capsys, monkeypatch):
    monkeypatch.setattr(reporter_module, "_WAITING_AFTER_S", 0.0)
    with reporter():
        time.sleep(1.5)
    assert "no replica is ready after 0 s" in capsys.readouterr().out


def test_a_run_whose_replicas_answer_no_more_says_so_in_its_log(cluster, near_board, reporter, capsys, monkeypatch):
    monkeypatch.setattr(reporter_module, "_STILL_AFTER_S", 0.5)
    near_board.replica_ready.remote(1.0, "stub")
    with reporter():
        time.sleep(3)
    assert "no batch has ended for 0 s; free on the cluster: " in capsys.readouterr().out
