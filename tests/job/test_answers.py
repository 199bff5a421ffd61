import base64
import json
import struct
from types import SimpleNamespace

import pyarrow as pa
import pytest

from rayferry.job.answers import Answers
from rayferry.job.openai_batch import CHAT, COMPLETIONS, EMBEDDINGS
from rayferry.job.pump import RefusedError
from rayferry.job.rows import RESPONSE, SOURCE_SCHEMA, RowError

BAD = {"stage": "parse", "error_type": "BadPrompt", "error": "column 'text' is empty", "raw": '{"text": ""}'}


def row(position, prompt, **more):
    return {"id": f"a:{position}", "source_uri": "s3://bucket/a", "position": position, "prompt": prompt} | more


def table(*rows, **own):
    """A batch as the source makes it."""
    return pa.Table.from_pylist(list(rows), pa.schema([*SOURCE_SCHEMA, *own.items()]))


def completion(text, finish_reason="stop", num_generated=2, **more):
    tokens = list(range(num_generated))
    defaults = {"text": text, "finish_reason": finish_reason, "token_ids": tokens, "logprobs": None}
    return SimpleNamespace(**defaults | {"stop_reason": None} | more)


def output(*completions, num_input=3):
    """What vLLM gives for a call, as far as it is read."""
    return SimpleNamespace(outputs=list(completions), prompt_token_ids=list(range(num_input)))


def pooled(num_input=3, **more):
    return SimpleNamespace(outputs=SimpleNamespace(**more), prompt_token_ids=list(range(num_input)))


@pytest.fixture
def answer(make_spec):
    """The rows of a batch after these outcomes."""

    def run(rows, outcomes, job=None, **options):
        return Answers(make_spec(**(job or {})), **options).add_to(table(*rows), outcomes).to_pylist()

    return run


def test_an_answer_has_all_of_its_columns(answer):
    (found,) = answer([row(0, "p")], [[output(completion("Paris.", "length", 7), num_input=5)]])
    assert {name: found[name] for name in found if name not in SOURCE_SCHEMA.names} == {
        "generated_text": "Paris.",
        "finish_reason": "length",
        "num_input_tokens": 5,
        "num_generated_tokens": 7,
        "model": "m",
    }


def test_several_answers_to_a_prompt_are_kept_as_a_list(answer):
    outputs = [output(completion("x"), completion("y", "length", 3))]
    (found,) = answer([row(0, "p")], [outputs], {"sampling": {"n": 2}})
    assert (found["generated_text"], found["num_generated_tokens"]) == ("x", 5)
    assert found["outputs"] == [
        {"text": "x", "finish_reason": "stop", "num_generated_tokens": 2, "logprobs": None},
        {"text": "y", "finish_reason": "length", "num_generated_tokens": 3, "logprobs": None},
    ]


def logprob(token, value, rank):
    return SimpleNamespace(decoded_token=token, logprob=value, rank=rank)


LOGPROBS = [{7: logprob("b", -2.0, 2), 5: logprob("a", -1.0, 1)}]


def test_logprobs_come_with_the_most_likely_first(answer):
    outputs = [output(completion("b", token_ids=[7], logprobs=LOGPROBS))]
    (found,) = answer([row(0, "p")], [outputs], {"sampling": {"logprobs": 2}})
    first, second = {"token": "a", "token_id": 5, "logprob": -1.0}, {"token": "b", "token_id": 7, "logprob": -2.0}
    assert found["outputs"][0]["logprobs"] == [second | {"top": [first, second]}]


@pytest.mark.parametrize(
    ("job", "labels", "out", "columns"),
    [
        ({"task": "embed"}, None, pooled(embedding=[0.5, 1.0]), {"embedding": [0.5, 1.0]}),
        ({"task": "classify"}, {1: "good"}, pooled(probs=[0.25, 0.75]), {"label": "good", "probs": [0.25, 0.75]}),
        ({"task": "classify"}, None, pooled(probs=[0.75, 0.25]), {"label": "0", "probs": [0.75, 0.25]}),
        ({"task": "score", "input": {"document_column": "d"}}, None, pooled(score=0.5), {"score": 0.5}),
    ],
)
def test_every_task_has_its_answer(answer, job, labels, out, columns):
    (found,) = answer([row(0, "p")], [[out]], job, labels=labels)
    assert {name: found[name] for name in columns} == columns
    assert (found["num_input_tokens"], found["stage"]) == (3, None)


def test_the_inputs_own_columns_are_kept(make_spec):
    batch = table(row(0, "p", n=5), n=pa.int64())
    (found,) = Answers(make_spec()).add_to(batch, [[output(completion("x"))]]).to_pylist()
    assert found["n"] == 5


def test_a_row_that_came_in_failed_stays_as_it_was_and_has_no_answer(answer):
    (found,) = answer([row(0, None, **BAD)], [None])
    assert ({name: found[name] for name in BAD}, found["generated_text"], found["model"]) == (BAD, None, None)


def refused(stage, error):
    refusal = RefusedError(stage)
    refusal.__cause__ = error
    return refusal


@pytest.mark.parametrize(
    ("outcome", "stage", "kind", "error"),
    [
        (ValueError("too long"), "engine", "ValueError", "too long"),
        (refused("length", ValueError("too long")), "length", "ValueError", "too long"),
        (RefusedError(), "engine", "RefusedError", ""),
        (RowError("read", "OSError", "no image"), "read", "OSError", "no image"),
        (ValueError("lone \ud800"), "engine", "ValueError", "lone ?"),
        ([], "write", "IndexError", "list index out of range"),
        ([output(completion("\ud800"))], "write", "UnicodeEncodeError", None),
        ([output(completion("x", num_generated=2**3, finish_reason="error"))], "engine", "GenerationError", None),
        ([output(completion("x", num_generated=2**3, finish_reason="abort"))], "engine", "GenerationError", None),
    ],
)
def test_a_row_without_an_answer_says_why(answer, outcome, stage, kind, error):
    (found,) = answer([row(0, "wörd")], [outcome])
    assert (found["stage"], found["raw"], found["generated_text"]) == (stage, '{"prompt": "wörd"}', None)
    assert kind in {None, found["error_type"]}
    assert error in {None, found["error"]}


def test_good_bad_and_refused_rows_of_one_batch_do_not_mix(answer):
    found = answer(
        [row(0, "p"), row(1, None, **BAD), row(2, "q"), row(3, "r"), row(4, "s")],
        [[output(completion("x"))], None, ValueError("no"), [output(completion("\ud800"))], [output(completion("y"))]],
    )
    assert [(one["id"], one["stage"], one["generated_text"]) for one in found] == [
        ("a:0", None, "x"),
        ("a:1", "parse", None),
        ("a:2", "engine", None),
        ("a:3", "write", None),
        ("a:4", None, "y"),
    ]


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"sampling": {"n": 2}},
        {"task": "embed"},
        {"task": "classify"},
        {"task": "score", "input": {"document_column": "d"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("openai", [False, True])
def test_the_columns_and_their_types_are_the_same_whatever_came_of_the_rows(make_spec, job, openai):
    answers = Answers(make_spec(**job), openai=openai)
    empty = answers.add_to(table(row(0, "p")).slice(1), [])
    assert empty.schema.equals(answers.add_to(table(row(0, "p")), [ValueError("no")]).schema)
    assert empty.schema.equals(pa.schema([*SOURCE_SCHEMA, *answers.schema]))


@pytest.fixture
def ways(monkeypatch):
    """Which of the two ways of making columns are gone, and what they gave."""
    gone = []

    def watched(name):
        method = getattr(Answers, name)

        def watch(self, *args):
            made = method(self, *args)
            gone.append((name, made is not None))
            return made

        monkeypatch.setattr(Answers, name, watch)

    watched("_plain")
    watched("_mixed")
    return gone


GOOD = [output(completion("x", "length", 7), num_input=5)]
PLAIN, MIXED = [("_plain", True)], [("_plain", False), ("_mixed", True)]


@pytest.mark.parametrize(
    ("rows", "outcomes", "job", "taken"),
    [
        ([row(0, "p"), row(1, "q")], [GOOD, GOOD], {}, PLAIN),
        ([row(0, "p"), row(1, None, **BAD)], [GOOD, None], {}, MIXED),
        ([row(0, "p"), row(1, "q")], [GOOD, ValueError("no")], {}, MIXED),
        ([row(0, "p")], [[output(completion("\ud800"))]], {}, MIXED),
        ([row(0, "p")], [GOOD * 2], {}, MIXED),
        ([row(0, "p")], [GOOD], {"sampling": {"n": 2}}, MIXED),
        ([row(0, "p")], [[pooled(embedding=[0.5])]], {"task": "embed"}, MIXED),
    ],
    ids=["good", "one failed before", "one refused", "one no text", "two calls", "several answers", "embed"],
)
def test_only_a_batch_of_plain_prompts_without_a_failure_is_answered_at_once(answer, ways, rows, outcomes, job, taken):
    answer(rows, outcomes, job)
    assert ways == taken


def test_a_batch_answered_at_once_has_the_columns_that_it_has_row_by_row(make_spec, monkeypatch):
    answers = Answers(make_spec())
    batch = table(*(row(position, f"p{position}") for position in range(3)))
    outcomes = [GOOD, [output(completion("", None, 0), num_input=0)], [output(completion("é\0"))]]
    at_once = answers.add_to(batch, outcomes)
    monkeypatch.setattr(Answers, "_plain", lambda *_args: None)
    one_by_one = answers.add_to(batch, outcomes)
    assert at_once.schema.equals(one_by_one.schema)
    assert at_once.equals(one_by_one)


def test_a_batch_of_several_chunks_is_answered_as_one(make_spec):
    batch = pa.concat_tables([table(row(0, "p")), table(row(1, None, **BAD))])
    found = Answers(make_spec()).add_to(batch, [[output(completion("x"))], None]).to_pylist()
    assert [one["stage"] for one in found] == [None, "parse"]


@pytest.fixture
def response(answer):
    """The body of the response to an OpenAI line."""

    def run(request, outputs, job=None, **options):
        asked = row(0, "p", request=json.dumps(request))
        (found,) = answer([asked], [outputs], job, openai=True, **options)
        assert found["stage"] is None, found["error"]
        return json.loads(found[RESPONSE])

    return run


def test_a_completion_is_answered_in_openais_form(response):
    body = response({"openai": {"url": COMPLETIONS, "logprobs": None}}, [output(completion("x", "length", 4))])
    assert body.pop("created") > 0
    assert body == {
        "model": "m",
        "object": "text_completion",
        "choices": [{"index": 0, "finish_reason": "length", "stop_reason": None, "text": "x", "logprobs": None}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


def test_answers_to_several_prompts_are_choices_one_after_another(response):
    outputs = [output(completion("a"), completion("b")), output(completion("c"), completion("d"))]
    body = response({"openai": {"url": COMPLETIONS, "logprobs": None}}, outputs)
    assert [(one["index"], one["text"]) for one in body["choices"]] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert body["usage"]["prompt_tokens"] == 6


def test_a_chat_is_answered_in_openais_form(response):
    body = response({"openai": {"url": CHAT, "logprobs": None}}, [output(completion("x", stop_reason="\n"))])
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "finish_reason": "stop",
            "stop_reason": "\n",
            "message": {"role": "assistant", "content": "x"},
            "logprobs": None,
        }
    ]


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("asked", "there"), [(2, True), (None, False)])
def test_logprobs_are_told_if_the_line_asks_for_them(response, url, asked, there):
    outputs = [output(completion("b", token_ids=[7], logprobs=LOGPROBS))]
    body = response({"openai": {"url": url, "logprobs": asked}}, outputs)
    assert (body["choices"][0]["logprobs"] is not None) is there


CALL = {"function": {"name": "f"}, "type": "function"}


@pytest.mark.parametrize(
    ("choice", "text", "calls", "finish_reason"),
    [
        (CALL, '{"a": 1}', [("f", '{"a": 1}')], "stop"),
        ("required", '[{"name": "f", "parameters": {"a": 1}}]', [("f", '{"a": 1}')], "tool_calls"),
        ("auto", "f!", [("f", "{}")], "tool_calls"),
        ("auto", "text", [], "stop"),
        ("none", "text", [], "stop"),
    ],
    ids=["named", "required", "auto", "auto without", "none"],
)
def test_calls_of_tools_are_told_as_calls(response, choice, text, calls, finish_reason):
    def parse_tools(text, _chat):
        return (None, [{"name": "f", "arguments": "{}"}]) if text.endswith("!") else (text, [])

    request = {"openai": {"url": CHAT, "logprobs": None, "tool_choice": choice}, "chat": {}}
    (found,) = response(request, [output(completion(text))], parse_tools=parse_tools)["choices"]
    told = [
        (call["function"]["name"], call["function"]["arguments"]) for call in found["message"].get("tool_calls", [])
    ]
    assert (told, found["finish_reason"]) == (calls, finish_reason)


@pytest.mark.parametrize("as_base64", [False, True])
def test_embeddings_are_answered_in_openais_form(response, as_base64):
    outputs = [pooled(embedding=[0.5, 1.0]), pooled(embedding=[2.0, 4.0])]
    body = response({"openai": {"url": EMBEDDINGS, "base64": as_base64}}, outputs, {"task": "embed"})
    vectors = [one["embedding"] for one in body["data"]]
    if as_base64:
        vectors = [list(struct.unpack("<2f", base64.b64decode(vector))) for vector in vectors]
    assert (vectors, body["usage"]) == ([[0.5, 1.0], [2.0, 4.0]], {"prompt_tokens": 6, "total_tokens": 6})
