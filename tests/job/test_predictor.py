import asyncio
import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from rayferry.job.errors import EngineError
from rayferry.job.predictor import LLMPredictor, _answered, messages_of
from rayferry.job.pump import Pump, RefusedError
from rayferry.job.rows import ANSWER_SCHEMA, SOURCE_SCHEMA, failure, to_table

BAD = failure("parse", "BadPrompt", "column 'text' is empty") | {"raw": '{"text": ""}'}


def row(position, prompt, **more):
    return {"id": f"a:{position}", "source_uri": "s3://bucket/a", "position": position, "prompt": prompt} | more


def output(text, finish_reason="stop", num_input=3, num_generated=2):
    """What vLLM gives for a request, as far as it is read."""
    answer = SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=list(range(num_generated)))
    return SimpleNamespace(outputs=[answer], prompt_token_ids=list(range(num_input)))


def answer_all(rows, outcomes):
    return _answered(to_table(rows), outcomes, "some/model").to_pylist()


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello",
        "",
        "[draft] Hello",
        "[]",
        "[1, 2]",
        '["system"]',
        '{"role": "user", "content": "x"}',
        '[{"content": "no role"}]',
        '[{"role": "user", "content": "x"}, 5]',
        '[{"role": "user", "content": "cut',
        "[" * 100_000,
    ],
    ids=lambda prompt: prompt[:40],
)
def test_text_is_one_message_of_the_user(prompt):
    assert messages_of(prompt) == [{"role": "user", "content": prompt}]


def test_a_json_list_of_messages_is_taken_as_it_is():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé", "name": "ann"}]
    assert messages_of(json.dumps(messages)) == messages


def test_an_answer_has_all_of_its_columns():
    (answered,) = answer_all([row(0, "p")], [output("Paris.", "length", num_input=5, num_generated=7)])
    assert {name: answered[name] for name in ANSWER_SCHEMA.names} == {
        "generated_text": "Paris.",
        "finish_reason": "length",
        "num_input_tokens": 5,
        "num_generated_tokens": 7,
        "model": "some/model",
    }


def test_answers_are_in_the_order_of_the_rows():
    answered = answer_all([row(0, "p"), row(1, "q")], [output("first"), output("second")])
    assert [(found["id"], found["generated_text"]) for found in answered] == [("a:0", "first"), ("a:1", "second")]


def test_an_answered_row_has_no_stage():
    assert answer_all([row(0, "p")], [output("x")])[0]["stage"] is None


def test_the_inputs_own_columns_are_kept():
    (answered,) = answer_all([row(0, "p", score=5, tags=["a", "b"])], [output("x")])
    assert (answered["score"], answered["tags"]) == (5, ["a", "b"])


def test_a_row_that_came_in_failed_stays_as_it_was():
    (answered,) = answer_all([row(0, None, **BAD)], [None])
    assert {name: answered[name] for name in BAD} == BAD


def test_a_row_that_came_in_failed_has_no_answer():
    (answered,) = answer_all([row(0, None, **BAD)], [None])
    assert [answered[name] for name in ANSWER_SCHEMA.names] == [None] * len(ANSWER_SCHEMA.names)


def test_a_refused_row_says_why():
    (answered,) = answer_all([row(0, "p")], [ValueError("the prompt has 9 tokens, 8 are allowed")])
    assert (answered["stage"], answered["error_type"], answered["error"]) == (
        "engine",
        "ValueError",
        "the prompt has 9 tokens, 8 are allowed",
    )


def test_a_refused_row_keeps_its_prompt_as_raw_text():
    assert answer_all([row(0, "wörd")], [ValueError("x")])[0]["raw"] == '{"prompt": "wörd"}'


def test_a_refused_row_has_no_answer():
    (answered,) = answer_all([row(0, "p")], [ValueError("x")])
    assert answered["generated_text"] is None


def test_good_bad_and_refused_rows_of_one_batch_do_not_mix():
    answered = answer_all(
        [row(0, "p"), row(1, None, **BAD), row(2, "q"), row(3, "r")],
        [output("x"), None, ValueError("no"), output("y")],
    )
    assert [(found["stage"], found["generated_text"]) for found in answered] == [
        (None, "x"),
        ("parse", None),
        ("engine", None),
        (None, "y"),
    ]


@pytest.mark.parametrize("outcomes", [[output("x")], [ValueError("no")]], ids=["answered", "refused"])
def test_the_columns_and_their_types_are_the_same_whatever_came_of_the_rows(outcomes):
    schema = _answered(to_table([row(0, "p")]), outcomes, "m").schema
    assert [(field.name, field.type) for field in schema] == [
        (field.name, field.type) for field in [*SOURCE_SCHEMA, *ANSWER_SCHEMA]
    ]


def test_a_batch_without_rows_has_the_same_columns():
    assert _answered(to_table([row(0, "p")]).slice(1), [], "m").column_names == [
        *SOURCE_SCHEMA.names,
        *ANSWER_SCHEMA.names,
    ]


def test_a_batch_of_several_chunks_is_answered_as_one():
    table = pa.concat_tables([to_table([row(0, "p")]), to_table([row(1, None, **BAD)])])
    assert [found["stage"] for found in _answered(table, [output("x"), None], "m").to_pylist()] == [None, "parse"]


class FakeEngine:
    """Answers in one step; refuses `refuse`, dies of `die`."""

    def __init__(self):
        self.asked = []
        self._new = []

    def add(self, prompt):
        self.asked.append(prompt)
        if prompt == "refuse":
            raise RefusedError from ValueError("too long")
        self._new.append(prompt)
        return str(len(self.asked) - 1)

    def step(self):
        if "die" in self._new:
            raise RuntimeError("out of memory")
        self._new = []
        return [
            SimpleNamespace(request_id=str(index), finished=True, **vars(output(prompt.upper())))
            for index, prompt in enumerate(self.asked)
            if prompt != "refuse"
        ]

    def is_busy(self):
        return bool(self._new)


@pytest.fixture
def predictor(make_spec):
    """A replica around a fake engine, its model's loading left out."""
    replica = LLMPredictor.__new__(LLMPredictor)
    replica.engine = FakeEngine()
    replica._spec = make_spec()
    replica._progress = None
    replica._pump = Pump(replica.engine)
    return replica


def test_a_replica_answers_a_batch_of_all_kinds_of_rows(predictor):
    table = to_table([row(0, "a"), row(1, None, **BAD), row(2, "refuse"), row(3, "b")])
    answered = asyncio.run(predictor(table)).to_pylist()
    assert [(found["stage"], found["generated_text"]) for found in answered] == [
        (None, "A"),
        ("parse", None),
        ("engine", None),
        (None, "B"),
    ]


def test_a_row_that_came_in_failed_never_reaches_the_engine(predictor):
    asyncio.run(predictor(to_table([row(0, None, **BAD), row(1, "a")])))
    assert predictor.engine.asked == ["a"]


def test_a_replica_whose_engine_dies_raises(predictor):
    with pytest.raises(EngineError, match="the engine died: RuntimeError: out of memory"):
        asyncio.run(predictor(to_table([row(0, "die")])))


def test_a_replica_whose_engine_dies_tells_the_board(predictor, near_board):
    predictor._progress = near_board
    with pytest.raises(EngineError):
        asyncio.run(predictor(to_table([row(0, "die")])))
    assert near_board.board.snapshot().failure == "the engine died: RuntimeError: out of memory"


@pytest.fixture
def unloadable(make_spec, bucket_uri, monkeypatch):
    """A job whose model is an empty prefix."""
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.setenv(name, "1")  # which the replica sets for its own process
    return make_spec(model=bucket_uri + "/model")


def test_a_model_that_cannot_be_loaded_is_named_with_the_reason(unloadable):
    with pytest.raises(EngineError, match=r"model 's3://.*/model' could not be loaded: s3://.*/model: no model there"):
        LLMPredictor(unloadable, "cpu")


def test_a_model_that_cannot_be_loaded_is_told_to_the_board(unloadable, near_board):
    with pytest.raises(EngineError) as raised:
        LLMPredictor(unloadable, "cpu", near_board)
    assert near_board.board.snapshot().failure == str(raised.value)
