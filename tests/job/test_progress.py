import pytest
import ray

from rayferry.job.progress import Board, Snapshot, start_board

DATA = {"kind": "data", "num_rows": 10, "num_input_tokens": 30, "num_generated_tokens": 20}
ERRORS = {"kind": "errors", "num_rows": 2, "num_input_tokens": 0, "num_generated_tokens": 0}
PREVIEW = [{"prompt": "Water boils at", "generated_text": "100 °C"}, {"prompt": "b", "generated_text": "c"}]


@pytest.fixture
def board():
    return Board()


def test_a_board_begins_with_nothing(board):
    assert board.snapshot() == Snapshot()


def test_rows_read_are_summed_over_files(board):
    board.file_read("a", 3)
    board.file_read("b", 4)
    now = board.snapshot()
    assert (now.rows_read, now.files_read) == (7, 2)


def test_a_file_that_is_read_again_counts_once(board):
    board.file_read("a", 3)
    board.file_read("a", 3)
    assert board.snapshot().rows_read == 3


def test_rows_written_are_summed_by_their_kind(board):
    board.parts_written("r-0", [DATA, ERRORS], [])
    board.parts_written("r-1", [DATA], [])
    now = board.snapshot()
    assert (now.succeeded, now.failed, now.num_input_tokens, now.num_generated_tokens) == (20, 2, 60, 40)


def test_a_task_that_writes_again_counts_once(board):
    board.parts_written("r-0", [DATA, ERRORS], [])
    board.parts_written("r-0", [DATA, ERRORS], [])
    now = board.snapshot()
    assert (now.succeeded, now.failed) == (10, 2)


def failures(num_rows):
    return [{"kind": "errors", "num_rows": num_rows}]


@pytest.mark.parametrize(
    ("rate", "failed", "hopeless"),
    [
        (0.0, 1, True),
        (0.1, 1000, False),
        (0.1, 1001, True),
        (0.5, 5000, False),
        (0.5, 9001, False),  # so little is left that it goes on to its end
        (1.0, 10000, False),
    ],
)
def test_once_all_is_read_a_run_is_hopeless_as_soon_as_too_many_rows_failed(rate, failed, hopeless):
    board = Board(num_files=1, num_bytes=10, max_error_rate=rate)
    board.file_read("a", 10_000, 10)
    assert bool(board.parts_written("r-0", failures(failed), [])) is hopeless


@pytest.mark.parametrize(
    ("seen", "failed", "hopeless"),
    [
        (5, 100_000, False),  # too little of the input
        (10, 99, False),  # too few failures
        (10, 12_500, False),  # an estimate of 100,000 rows has room for being wrong
        (10, 12_501, True),
    ],
)
def test_before_all_is_read_a_run_is_hopeless_only_on_much_evidence(seen, failed, hopeless):
    board = Board(num_files=2, num_bytes=100, max_error_rate=0.1)
    board.file_partly_read("a", 1000 * seen, seen)
    assert bool(board.parts_written("r-0", failures(failed), [])) is hopeless


def test_a_hopeless_run_is_told_why():
    board = Board(num_files=1, num_bytes=1, max_error_rate=0.05)
    board.file_read("a", 10_000, 1)
    assert board.parts_written("r-0", failures(2_000), []).startswith(
        "stopped early: 2,000 of 10,000 rows failed, more than max_error_rate (5.0%)"
    )


def test_rows_with_something_rescued_are_counted(board):
    board.parts_written("r-0", [DATA | {"num_rescued": 3}, ERRORS], [])
    assert board.snapshot().num_rescued == 3


def test_the_first_preview_is_kept(board):
    board.parts_written("r-0", [ERRORS], [])
    board.parts_written("r-1", [DATA], PREVIEW)
    board.parts_written("r-2", [DATA], [{"prompt": "later", "generated_text": "x"}])
    assert board.snapshot().preview == PREVIEW


def test_ready_replicas_are_kept_with_their_load_times(board):
    board.replica_ready(2.5, "0.32.0")
    board.replica_ready(3.5, "0.32.0")
    now = board.snapshot()
    assert (now.load_s, now.vllm) == ([2.5, 3.5], "0.32.0")


def test_the_first_ready_replica_sets_the_time(board):
    board.replica_ready(2.5, "0.32.0")
    first = board.snapshot().ready_at
    board.replica_ready(3.5, "0.32.0")
    assert board.snapshot().ready_at == first


def test_the_first_reason_of_failure_is_kept(board):
    board.failed("out of memory")
    board.failed("actor died")
    assert board.snapshot().failure == "out of memory"


def test_the_counts_as_json_say_nothing_of_what_rows_say():
    now = Snapshot(rows_read=9, succeeded=7, failed=1, num_input_tokens=5, num_generated_tokens=6, load_s=[1, 2])
    now.preview = PREVIEW
    assert now.to_json() == {
        "schema_version": 1,
        "rows_read": 9,
        "succeeded": 7,
        "failed": 1,
        "num_input_tokens": 5,
        "num_generated_tokens": 6,
        "replicas": 2,
    }


def test_a_board_answers_from_its_own_process(cluster):
    board = start_board()
    ray.get(board.file_read.remote("a", 3))
    assert ray.get(board.snapshot.remote()).rows_read == 3
