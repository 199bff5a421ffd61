"""Engines that die, hang or are killed, in the whole pipeline on a real Ray head; only the engine is a stub."""

import io
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import ray

from rayferry.job import pipeline
from rayferry.job.errors import JobError
from rayferry.job.predictor import LLMPredictor

# a run's own warnings are one test's matter; here they would end it
pytestmark = pytest.mark.filterwarnings("ignore::ray.util.annotations.RayDeprecationWarning")


class Fragile:
    """Answers in capitals, a step each. `crash` ends its process, `raise` raises, `hang` sleeps, `kill` is killed.

    With `once` behind it, only if the model's file is not there yet.
    """

    version = "stub"

    def __init__(self, mark):
        self._mark = Path(mark)
        self._ids = count()
        self._new = []

    def add(self, call):
        self._new.append((str(next(self._ids)), call.prompt))
        return self._new[-1][0]

    def step(self):
        new, self._new = self._new, []
        for _, prompt in new:
            word, _, once = prompt.partition(" ")
            if word in self.DEATHS and not (once and self._mark.exists()):
                if once:
                    self._mark.touch()
                self.DEATHS[word]()
        return [SimpleNamespace(request_id=name, finished=True, **answer(prompt)) for name, prompt in new]

    def is_busy(self):
        return bool(self._new)

    def tool_parser(self):
        return None

    @staticmethod
    def _raise():
        raise RuntimeError("illegal memory access")

    DEATHS = {  # noqa: RUF012  # never changed
        "crash": lambda: os._exit(7),
        "raise": _raise,
        "hang": lambda: time.sleep(600),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    }


def answer(prompt):
    completion = SimpleNamespace(text=prompt.upper(), finish_reason="stop", token_ids=[1])
    return {"outputs": [completion], "prompt_token_ids": [1]}


class Replica(LLMPredictor):
    """With that engine."""

    def _load(self, spec, device):
        return Fragile(spec.model)


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def carry_out(cluster, tmp_path, make_spec):
    """Runs a job over lines; gives its answers, its errors and what it said."""

    def run(lines, **changes):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.txt").write_text("\n".join(lines))
        spec = make_spec(
            model=str(tmp_path / "died"),
            input={"uri": str(tmp_path / "in")},
            output={"uri": str(tmp_path / "out")},
            **{"batch_size": 10, "on_error": {"max_error_rate": 1.0}, **changes},
        )
        with redirect_stdout(io.StringIO()) as said:
            try:
                pipeline.run(spec, "run-1", Replica)
            finally:
                sys.stderr.write(said.getvalue())
        rows = {"data": [], "errors": []}
        for kind, found in rows.items():
            for part in (tmp_path / "out" / kind).glob("*.parquet"):
                found.extend(pq.read_table(part).to_pylist())
        answers = {row["id"]: row["generated_text"] for row in rows["data"]}
        assert len(answers) == len(rows["data"])
        return SimpleNamespace(answers=answers, errors=rows["errors"], said=said.getvalue())

    return run


def words(number, **others):
    """Lines, some of them others: by their number."""
    return [others.get(f"at{at}", f"word {at}") for at in range(number)]


def answers_to(lines, *poison):
    return {f"a.txt:{at}": line.upper() for at, line in enumerate(lines) if at not in poison}


def test_rows_that_kill_the_engine_are_errors_and_all_others_are_answered(carry_out):
    lines = words(60, at13="raise", at47="crash")
    done = carry_out(lines)
    assert done.answers == answers_to(lines, 13, 47)
    told = {(row["id"], row["stage"], row["error_type"]) for row in done.errors}
    assert told == {("a.txt:13", "engine", "EngineDied"), ("a.txt:47", "engine", "EngineDied")}
    assert "a replica's engine died (its process ended without a word" in done.said
    assert "2 rows killed the engine: see errors/" in done.said


@pytest.mark.slow
def test_two_replicas_find_the_row_that_kills_their_engines(carry_out):
    lines = words(100, at13="crash")
    done = carry_out(lines, replicas=2)
    assert (done.answers, [row["id"] for row in done.errors]) == (answers_to(lines, 13), ["a.txt:13"])


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        pytest.param("raise once", "the engine died: RuntimeError: illegal memory access", marks=pytest.mark.slow),
        pytest.param(
            "hang once",
            "the engine died: TimeoutError: it hangs: no step ended in 2 s (retry.engine_timeout)",
            marks=pytest.mark.slow,
        ),
        ("kill once", "its process ended without a word: a crash, the kernel's or Ray's memory limit, or a lost node"),
    ],
)
def test_an_engine_that_dies_once_is_started_again_and_no_row_is_blamed(carry_out, word, reason):
    lines = words(60, at13=word)
    done = carry_out(lines, retry={"engine_timeout": "2s"})
    assert (done.answers, done.errors) == (answers_to(lines), [])
    assert done.said.count(f"a replica's engine died ({reason}); it is started again") == 1


@pytest.mark.slow
def test_an_engine_that_always_dies_ends_the_run_with_the_reason_and_what_to_change(carry_out):
    with pytest.raises(JobError) as raised:
        carry_out(["raise"] * 60)
    assert str(raised.value).startswith(
        "the engine died: RuntimeError: illegal memory access; engines died 7 times in a row"
    )
    assert "lower engine.max_num_seqs (now the default of vLLM)" in str(raised.value)
    assert str(raised.value).endswith("or replicas (now 1).")
