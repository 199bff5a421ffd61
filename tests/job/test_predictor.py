import asyncio
import contextlib
import gc
import json
import os
import weakref
from types import SimpleNamespace

import pyarrow as pa
import pytest

from rayferry.job.errors import EngineError
from rayferry.job.predictor import LLMPredictor
from rayferry.job.pump import RefusedError
from rayferry.job.rows import SOURCE_SCHEMA

BAD = {"stage": "parse", "error_type": "BadPrompt", "error": "column 'text' is empty", "raw": '{"text": ""}'}


def table(*prompts, **requests):
    """A batch as the source makes it; None came in failed."""
    rows = [
        {"id": f"a:{index}", "source_uri": "s3://bucket/a", "position": index, "prompt": prompt}
        | ({"request": json.dumps(requests[prompt])} if prompt in requests else {})
        | (BAD if prompt is None else {})
        for index, prompt in enumerate(prompts)
    ]
    return pa.Table.from_pylist(rows, SOURCE_SCHEMA)


class FakeEngine:
    """Answers in one step; refuses `refuse`, dies of `die`."""

    version = "fake"

    def __init__(self):
        self.asked = []
        self._new = []

    def add(self, call):
        self.asked.append(call.prompt)
        if call.prompt == "refuse":
            raise RefusedError("length") from ValueError("too long")
        self._new.append((str(len(self.asked)), call.prompt))
        return str(len(self.asked))

    def step(self):
        new, self._new = self._new, []
        if any(prompt == "die" for _, prompt in new):
            raise RuntimeError("out of memory")
        return [SimpleNamespace(request_id=name, finished=True, **answer(prompt.upper())) for name, prompt in new]

    def is_busy(self):
        return bool(self._new)

    def tool_parser(self):
        return None


class Replica(LLMPredictor):
    """With that engine."""

    def _load(self, spec, device):
        self.engine = FakeEngine()
        return self.engine


def answer(text):
    completion = SimpleNamespace(text=text, finish_reason="stop", token_ids=[1, 2], logprobs=None)
    return {"outputs": [completion], "prompt_token_ids": [1, 2, 3]}


@pytest.fixture
def predictor(make_spec):
    """A replica around a fake engine."""
    return Replica(make_spec(sampling={"n": 2}), "cpu")


def answered(predictor, batch):
    rows = asyncio.run(predictor(batch)).to_pylist()
    return [(row["id"], row["stage"], row["generated_text"]) for row in rows]


def test_a_replica_answers_a_batch_of_all_kinds_of_rows(predictor):
    assert answered(predictor, table("a", None, "refuse", "b")) == [
        ("a:0", None, "A"),
        ("a:1", "parse", None),
        ("a:2", "length", None),
        ("a:3", None, "B"),
    ]


def test_a_row_that_came_in_failed_never_reaches_the_engine(predictor):
    answered(predictor, table(None, "a"))
    assert predictor.engine.asked == ["a"]


@pytest.mark.parametrize("prompts", [[], [None]])
def test_a_batch_that_asks_nothing_comes_back(predictor, prompts):
    assert len(answered(predictor, table(*prompts))) == len(prompts)


def test_a_row_of_several_prompts_has_all_of_their_answers(predictor):
    batch = table("x", "several", "y", several={"prompts": ["a", "b"]})
    rows = asyncio.run(predictor(batch)).to_pylist()
    assert [[one["text"] for one in row["outputs"]] for row in rows] == [["X"], ["A", "B"], ["Y"]]


def test_a_row_fails_if_one_of_its_prompts_is_refused(predictor):
    batch = table("x", "several", "y", several={"prompts": ["a", "refuse", "b"]})
    assert answered(predictor, batch) == [("a:0", None, "X"), ("a:1", "length", None), ("a:2", None, "Y")]


@pytest.mark.parametrize(
    ("request_", "stage"),
    [({"images": ["/nowhere.png"]}, "read"), ({"images": ["data:;base64,@"]}, "decode"), ("text", "parse")],
)
def test_a_row_whose_call_cannot_be_made_fails_alone(predictor, request_, stage):
    pytest.importorskip("PIL")
    assert answered(predictor, table("x", "bad", bad=request_)) == [("a:0", None, "X"), ("a:1", stage, None)]


def test_the_error_of_an_image_is_gone_with_its_row_though_the_collector_does_not_look():
    pytest.importorskip("PIL")
    gc.disable()
    try:
        calls = asyncio.run(LLMPredictor._calls(table("bad", bad={"images": ["data:;base64,AAAA"]})))
        error = weakref.ref(calls[0])
        assert error().columns()["stage"] == "decode"
        del calls
        assert error() is None
    finally:
        gc.enable()


def test_a_replica_whose_engine_dies_raises(predictor):
    with pytest.raises(EngineError, match="the engine died: RuntimeError: out of memory"):
        asyncio.run(predictor(table("die")))


@pytest.fixture
def exits(monkeypatch):
    """How this process would have ended."""
    codes = []

    def exit_(code):
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", exit_)
    return codes


def replicas_that_die(make_spec, near_board, number):
    for _ in range(number):
        with contextlib.suppress(SystemExit):
            asyncio.run(Replica(make_spec(), "cpu", near_board)(table("die")))


def test_a_replica_whose_engine_dies_tells_the_board_and_ends_its_process(make_spec, near_board, exits):
    replicas_that_die(make_spec, near_board, 1)
    assert (exits, near_board.board.snapshot().deaths) == ([1], ["the engine died: RuntimeError: out of memory"])


def test_a_row_that_kills_three_engines_the_last_time_alone_is_an_error(make_spec, near_board, exits):
    replicas_that_die(make_spec, near_board, 3)
    (row,) = asyncio.run(Replica(make_spec(), "cpu", near_board)(table("die"))).to_pylist()
    assert (len(exits), row["stage"], row["error_type"]) == (3, "engine", "EngineDied")
    assert row["error"].startswith("the engine died 3 times with this row, the last time with it alone")


class Unloadable(Replica):
    def _load(self, spec, device):
        raise RuntimeError("CUDA out of memory")


def test_want_of_memory_is_told_with_the_values_to_change(make_spec):
    spec = make_spec(engine={"max_num_seqs": 64}, replicas=3)
    with pytest.raises(EngineError, match=r"CUDA out of memory. If a GPU's memory ran out: .*max_num_seqs \(now 64\)"):
        Unloadable(spec, "gpu")
    with pytest.raises(EngineError, match=r"replicas \(now 3\)\.$"):
        Unloadable(spec, "cpu")


def test_a_replica_that_could_load_before_is_started_again(make_spec, near_board, exits):
    Replica(make_spec(), "cpu", near_board)
    with contextlib.suppress(SystemExit):
        Unloadable(make_spec(), "cpu", near_board)
    assert (exits, near_board.board.snapshot().failure) == ([1], None)


class KilledWhileLoading(Replica):
    """As vLLM tells how its own process ended."""

    code = -9

    def _load(self, spec, device):
        failed = {"EngineCore": self.code}
        raise RuntimeError(f"Engine core initialization failed. See root cause above. Failed core proc(s): {failed}")


class EndedWhileLoading(KilledWhileLoading):
    code = 1


def test_a_replica_whose_engine_is_killed_while_it_first_loads_is_started_again_a_few_times(
    make_spec, near_board, exits
):
    for _ in range(4):
        with contextlib.suppress(SystemExit):
            KilledWhileLoading(make_spec(), "cpu", near_board)
    assert (exits, near_board.board.snapshot().failure) == ([1] * 4, None)
    with pytest.raises(EngineError, match="'EngineCore': -9"):
        KilledWhileLoading(make_spec(), "cpu", near_board)
    assert "engines died 5 times in a row" in near_board.board.snapshot().failure


def test_a_replica_whose_engine_ends_by_itself_while_it_first_loads_ends_the_run(make_spec, near_board, exits):
    with pytest.raises(EngineError, match="could not be loaded"):
        EndedWhileLoading(make_spec(), "cpu", near_board)
    assert (exits, "'EngineCore': 1" in near_board.board.snapshot().failure) == ([], True)


@pytest.fixture
def unloadable(make_spec, bucket_uri, monkeypatch):
    """A job whose model is an empty prefix."""
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.setenv(name, "1")  # which the replica sets for its own process
    return make_spec(model=bucket_uri + "/model")


def test_a_model_that_cannot_be_loaded_is_named_with_the_reason(unloadable):
    with pytest.raises(EngineError, match=r"^s3://.*/model: no model there"):
        LLMPredictor(unloadable, "cpu")


def test_a_model_that_cannot_be_loaded_is_told_to_the_board(unloadable, near_board):
    with pytest.raises(EngineError) as raised:
        LLMPredictor(unloadable, "cpu", near_board)
    assert near_board.board.snapshot().failure == str(raised.value)
