"""What of it needs no engine: refusals, halves. The rest is in tests/e2e."""

from collections import deque
from itertools import count

import pytest

from rayferry.job.calls import Call
from rayferry.job.pooling import PoolingEngine
from rayferry.job.pump import RefusedError


class TooLongError(ValueError):
    parameter = "input_tokens"


class DeadError(Exception):
    """Stands for vLLM's EngineDeadError."""


class Llm:
    """Embeds a text as its length; refuses texts with `bad`, and long ones unless they may be cut."""

    def __init__(self):
        self.asked = []

    def embed(self, prompts, *, tokenization_kwargs, **_options):
        self.asked.append(list(prompts))
        for prompt in prompts:
            if "dead" in prompt:
                raise DeadError
            if "bad" in prompt:
                raise ValueError("cannot be embedded")
            if len(prompt) > 10 and tokenization_kwargs is None:
                raise TooLongError("too long")
        return [len(prompt) for prompt in prompts]


@pytest.fixture
def make_engine(make_spec):
    def make(**on_error):
        spec = make_spec(task="embed", on_error=on_error)
        engine = PoolingEngine.__new__(PoolingEngine)
        engine._llm, engine._spec, engine._dead_error = Llm(), spec, DeadError
        engine._lora, engine._mixes, engine._max_model_len = {}, True, 10
        engine._side = spec.on_error.prompt_too_long.partition("_")[2] or None
        engine._waiting, engine._ids = deque(), count()
        return engine

    return make


def outcomes(engine, texts):
    names = [engine.add(Call(text)) for text in texts]
    found = {}
    while engine.is_busy():
        found |= {settled.request_id: settled.outcome for settled in engine.step()}
    return [found[name] for name in names]


def told(outcome):
    return str(outcome) if isinstance(outcome, RefusedError) else outcome


def test_what_waits_is_asked_in_one_go(make_engine):
    engine = make_engine()
    assert outcomes(engine, ["a", "bb", "ccc"]) == [1, 2, 3]
    assert engine._llm.asked == [["a", "bb", "ccc"]]


def test_a_refused_text_costs_only_itself(make_engine):
    texts = ["a", "bad", "ccc", "dddd", "bad too"]
    assert [told(outcome) for outcome in outcomes(make_engine(), texts)] == [1, "engine", 3, 4, "engine"]


def test_a_text_too_long_is_refused_at_stage_length(make_engine):
    assert [told(outcome) for outcome in outcomes(make_engine(), ["a", "x" * 20])] == [1, "length"]


def test_a_text_too_long_is_cut_where_the_job_says_so(make_engine):
    assert outcomes(make_engine(prompt_too_long="truncate_left"), ["a", "x" * 20]) == [1, 20]


def test_a_dead_engine_is_no_refusal(make_engine):
    with pytest.raises(DeadError):
        outcomes(make_engine(), ["a", "dead"])


def test_calls_of_differing_dimensions_are_asked_apart(make_engine):
    engine = make_engine()
    for dimensions in (None, 4, None):
        engine.add(Call("a", dimensions=dimensions))
    groups = {}
    engine._ask = lambda calls, *_: groups.setdefault(calls[0].dimensions, calls)
    engine.step()
    assert {dimensions: len(calls) for dimensions, calls in groups.items()} == {None: 2, 4: 1}
