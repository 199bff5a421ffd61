"""What of the engine's room needs no engine: refusals, halves, ranks, images. The rest is in tests/e2e."""

import json
from collections import deque
from itertools import count

import jinja2
import pytest

from rayferry.job.calls import Call
from rayferry.job.engine import PoolingEngine, _rank, _with_images, stage_of
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


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (TooLongError("x"), "length"),
        (ValueError("longer than the maximum model length of 10"), "length"),
        (ValueError("This model's maximum context length is 10 tokens"), "length"),
        (jinja2.TemplateError("no user"), "template"),
        (ValueError("the chat template needs a user"), "template"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "tokenize"),
        (ValueError("Token id 9 is out of vocabulary"), "engine"),
    ],
)
def test_the_stage_of_a_refusal_is_told_by_what_vllm_says(error, stage):
    assert stage_of(error) == stage


@pytest.mark.parametrize(("ranks", "expected"), [([8], 16), ([8, 24], 32), ([512], 512), ([], 16)])
def test_the_rank_is_the_least_that_holds_all_adapters(ranks, expected, tmp_path):
    folders = []
    for at, rank in enumerate(ranks):
        folders.append(tmp_path / str(at))
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert _rank(folders) == expected


def test_images_go_before_the_text_of_the_last_message_of_the_user():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    parts = [{"type": "image_pil", "image_pil": "PICTURE"}, {"type": "text", "text": "c"}]
    assert _with_images(chat, ("PICTURE",)) == [*chat[:2], {"role": "user", "content": parts}]


def test_images_without_a_message_of_the_user_become_one():
    part = {"type": "image_pil", "image_pil": "PICTURE"}
    system = {"role": "system", "content": "a"}
    assert _with_images([system], ("PICTURE",)) == [system, {"role": "user", "content": [part]}]
