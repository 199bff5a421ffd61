"""The board's bookkeeping of deaths, driven by engines that are only rules; and the gate."""

import asyncio

import pytest

from rayferry.job import quarantine
from rayferry.job.progress import Board
from rayferry.job.quarantine import Gate

RULES = {
    "one row of a hundred": (100, {17}),
    "the first row": (100, {0}),
    "the last row": (100, {99}),
    "two rows side by side": (3000, {17, 18}),
    "two rows far apart": (3000, {0, 2999}),
    "one row that is its batch": (1, {0}),
}


def key(name, num_rows=10):
    return (f"{name}:0", f"{name}:{num_rows - 1}", num_rows)


class Replica:
    """Runs batches on a board until they end; its engine dies of a poison row."""

    def __init__(self, board, name="r"):
        self.board = board
        self.name = name
        self.num_lives = 0
        self.deaths = 0
        self.start()

    def start(self):
        self.num_lives += 1
        self.life = f"{self.name}/{self.num_lives}"
        assert self.board.replica_starts(self.life) is None
        self.board.replica_ready(1.0, "stub", self.life)

    def run(self, batch, poison):
        """Gives the rows that were answered, and those that were blamed."""
        while True:
            suspect = self.board.begin(batch, self.life)
            pieces = [list(range(batch[2]))] if suspect is None else suspect.pieces
            answered = []
            for at, piece in enumerate(pieces):
                if suspect is not None:
                    self.board.expose(batch, self.life, at)
                if poison & set(piece):
                    break
                answered += piece
            else:
                self.board.end(batch, self.life)
                return sorted(answered), set(suspect.poison) if suspect else set()
            self.deaths += 1
            assert self.deaths < 50
            self.start()


@pytest.fixture
def board():
    return Board()


@pytest.mark.parametrize(("num_rows", "poison"), RULES.values(), ids=RULES)
def test_exactly_the_poison_rows_are_blamed_and_all_others_answered(board, num_rows, poison):
    answered, blamed = Replica(board).run(key("a", num_rows), poison)
    assert (blamed, answered) == (poison, [row for row in range(num_rows) if row not in poison])
    assert (board.snapshot().num_poison, board.snapshot().failure) == (len(poison), None)


def test_a_poison_row_of_three_thousand_costs_six_deaths(board):
    replica = Replica(board)
    replica.run(key("a", 3000), {1234})
    assert replica.deaths == 6


def test_a_poison_row_is_remembered_when_its_batch_comes_again(board):
    replica = Replica(board)
    replica.run(key("a"), {3})
    deaths = replica.deaths
    assert (replica.run(key("a"), {3})[1], replica.deaths) == ({3}, deaths)


def test_a_batch_whose_process_died_once_runs_in_company_again(board):
    replica = Replica(board)
    board.begin(key("a"), replica.life)
    replica.start()
    assert board.begin(key("a"), replica.life) is None


def test_a_batch_that_ended_is_not_blamed_for_a_later_death(board):
    replica = Replica(board)
    for _ in range(3):
        board.begin(key("a"), replica.life)
        board.end(key("a"), replica.life)
        replica.start()
    assert board.begin(key("a"), replica.life) is None


def test_a_suspect_that_was_not_running_is_not_blamed(board):
    replica = Replica(board)
    for _ in range(2):
        board.begin(key("a"), replica.life)
        replica.start()
    for _ in range(2):
        assert board.begin(key("a"), replica.life) == (2, [list(range(10))], {})
        replica.start()


def test_a_batch_of_another_replica_is_not_blamed(board):
    one, two = Replica(board, "one"), Replica(board, "two")
    board.begin(key("a"), one.life)
    for _ in range(3):
        board.begin(key("b"), two.life)
        two.start()
    board.end(key("a"), one.life)
    assert board.begin(key("a"), one.life) is None


def test_a_batch_that_comes_to_another_replica_has_died_in_the_first(board):
    one, two = Replica(board, "one"), Replica(board, "two")
    assert [board.begin(key("a"), life) for life in (one.life, two.life)] == [None, None]
    assert board.begin(key("a"), one.life).deaths == 2


def test_a_death_is_counted_once_though_it_is_told_and_seen(board):
    replica = Replica(board)
    assert board.engine_died(replica.life, "out of memory") is True
    replica.start()
    assert board.snapshot().deaths == ["out of memory"]


def test_a_process_that_ends_without_a_word_is_a_death(board):
    Replica(board).start()
    (reason,) = board.snapshot().deaths
    assert reason.startswith("its process ended without a word")


def test_five_deaths_in_a_row_end_the_run_with_the_last_reason_and_what_to_do(board):
    for number in range(5):
        assert board.replica_starts(f"r/{number}", "Lower max_num_seqs.") is None
        again = board.engine_died(f"r/{number}", f"reason {number}", loading=number > 0)
        board.replica_ready(1.0, "stub", f"r/{number}")
        assert again is (number < 4)
    assert board.snapshot().failure == (
        "reason 4; engines died 5 times in a row with no row answered in between. "
        "The replica's own log tells more (rayferry logs --raw). Lower max_num_seqs."
    )
    assert len(board.snapshot().deaths) == 4


def test_an_engine_that_always_dies_ends_the_run_and_blames_few(board):
    replica = Replica(board)
    with pytest.raises(AssertionError):
        replica.run(key("a", 1000), set(range(1000)))
    assert "died 7 times in a row" in board.snapshot().failure
    assert board.snapshot().num_poison <= 5


def test_deaths_do_not_end_the_run_as_long_as_batches_end(board):
    replica = Replica(board)
    for number in range(30):
        board.begin(key(str(number)), replica.life)
        board.end(key(str(number)), replica.life)
        replica.start()
    assert (len(board.snapshot().deaths), board.snapshot().failure) == (30, None)


def test_deaths_of_many_replicas_at_once_do_not_end_the_run(board):
    replicas = [Replica(board, str(number)) for number in range(20)]
    for replica in replicas:
        replica.start()
    assert board.snapshot().failure is None


def test_a_first_load_that_fails_ends_the_run(board):
    board.replica_starts("r/1")
    assert board.engine_died("r/1", "no such model", loading=True) is False
    assert board.snapshot().failure == "no such model"


def test_a_first_load_that_fails_where_another_one_did_not_is_tried_again(board, monkeypatch):
    good = Replica(board, "good")
    lives = (f"r/{number}" for number in range(1000))
    now = [0.0]
    monkeypatch.setattr(quarantine.time, "monotonic", lambda: now[0])

    def goes_on(life, after_s):
        now[0] += after_s
        board.replica_starts(life)
        return board.engine_died(life, "this node's disk is full", loading=True)

    assert all(goes_on(next(lives), 3) for _ in range(100))  # and none of the other's batches has ended
    now[0] += 3000
    good.run(key("a"), set())
    assert all(goes_on(next(lives), 30) for _ in range(100))
    assert (board.snapshot().failure, set(board.snapshot().deaths)) == (None, {"this node's disk is full"})
    assert [goes_on(next(lives), 500) for _ in range(6)] == [True] * 5 + [False]  # the other one may be gone


def test_a_replica_that_loaded_once_and_cannot_any_more_ends_the_run(board):
    Replica(board, "good")
    Replica(board, "r")  # which may hold rows
    for number in range(2, 6):
        assert board.engine_died(f"r/{number - 1}", "the GPU is gone", loading=number > 2) is True
        board.replica_starts(f"r/{number}")
    assert board.engine_died("r/5", "the GPU is gone", loading=True) is False


def test_a_replica_that_is_started_again_is_one_replica(board):
    Replica(board).start()
    assert board.snapshot().load_s == [1.0]


def test_a_gate_lets_batches_in_together_and_suspects_alone_the_most_suspect_first():
    gate, seen, inside = Gate(), [], []

    async def batch(name, entered):
        async with entered:
            inside.append(name)
            seen.append(sorted(inside))
            await asyncio.sleep(0.01)
            inside.remove(name)

    async def all_of_them():
        first = [asyncio.create_task(batch(name, gate.together())) for name in "ab"]
        await asyncio.sleep(0)
        rest = [batch(name, gate.alone(deaths)) for name, deaths in (("c", 2), ("d", 4), ("e", 3), ("f", 4))]
        await asyncio.gather(*first, *rest, batch("g", gate.together()), batch("h", gate.together()))

    asyncio.run(all_of_them())
    alone = [names for names in seen if not {*names} & {*"abgh"}]
    assert all(len(names) == 1 for names in alone)
    assert "".join(name for (name,) in alone) in {"dfec", "fdec"}
    assert ["a", "b"] in seen
    assert ["g", "h"] in seen
    assert seen.index(["g", "h"]) > seen.index(["c"])
