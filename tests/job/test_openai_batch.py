import json

import pytest

from rayferry.job.openai_batch import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    BatchLines,
    chat_logprobs,
    completion_logprobs,
    result_line,
    usage,
)
from rayferry.job.rows import RowError

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def line(url=CHAT, **body):
    defaults = {CHAT: {"messages": HI}, COMPLETIONS: {"prompt": "p"}, EMBEDDINGS: {"input": "p"}}
    return {"custom_id": "a", "method": "POST", "url": url, "body": defaults.get(url, {}) | {"model": "any"} | body}


@pytest.fixture
def ask(make_spec):
    def run(record, **job):
        task = "embed" if record.get("url") == EMBEDDINGS else "generate"
        return BatchLines(make_spec(**{"task": task} | job))(record)

    return run


@pytest.fixture
def refusal(ask):
    def run(record, **job):
        with pytest.raises(RowError) as caught:
            ask(record, **job)
        return caught.value.stage, caught.value.error_type

    return run


def test_a_chat_is_its_messages(ask):
    assert ask(line()) == (
        json.dumps(HI),
        {
            "openai": {"url": CHAT, "logprobs": None},
            "messages": HI,
            "chat": {},
            "sampling": {"max_tokens": None},
        },
    )


@pytest.mark.parametrize(
    ("prompt", "shown", "prompts"),
    [
        ("p", "p", ["p"]),
        ([1, 2], "[[1, 2]]", [[1, 2]]),
        (["a", "b"], '["a", "b"]', ["a", "b"]),
        ([[1], [2]], "[[1], [2]]", [[1], [2]]),
    ],
)
@pytest.mark.parametrize("url", [COMPLETIONS, EMBEDDINGS])
def test_a_prompt_is_text_or_token_ids_or_several_of_them(ask, url, prompt, shown, prompts):
    found, request = ask(line(url, **{"prompt" if url == COMPLETIONS else "input": prompt}))
    assert (found, request["prompts"]) == (shown, prompts)


@pytest.mark.parametrize(
    ("record", "job", "limit"),
    [
        (line(), {}, None),
        (line(max_tokens=5), {}, 5),
        (line(max_tokens=5, max_completion_tokens=6), {}, 6),
        (line(), {"max_tokens": 7}, 7),
        (line(COMPLETIONS), {}, 16),
        (line(COMPLETIONS), {"max_tokens": 7}, 7),
        (line(COMPLETIONS, max_tokens=5), {"max_tokens": 7}, 5),
    ],
)
def test_max_tokens_is_the_bodys_or_the_jobs_or_openais(ask, record, job, limit):
    _, request = ask(record, sampling=job)
    assert request["sampling"]["max_tokens"] == limit


@pytest.mark.parametrize(
    ("body", "sampling"),
    [
        ({"temperature": 0.5, "seed": 1, "n": 2}, {"temperature": 0.5, "seed": 1, "n": 2}),
        ({"temperature": None}, {}),
        ({"stop": []}, {}),
        ({"stop": ["\n"]}, {"stop": ["\n"]}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": False, "top_logprobs": 3}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"structured_outputs": {"json": {"type": "object"}}},
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"structured_outputs": {"json": {"type": "object"}}},
        ),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ({"user": "u", "store": True}, {}),
    ],
    ids=str,
)
def test_the_bodys_parameters_are_those_of_vllm(ask, body, sampling):
    _, request = ask(line(**body))
    assert request["sampling"] == {"max_tokens": None} | sampling


def test_template_parameters_go_to_the_template(ask):
    _, request = ask(line(reasoning_effort="low", chat_template_kwargs={"a": 1}, add_generation_prompt=True))
    assert request["chat"] == {
        "add_generation_prompt": True,
        "chat_template_kwargs": {"reasoning_effort": "low", "a": 1},
    }


def test_a_model_that_is_an_adapter_is_asked_with_it(ask):
    _, request = ask(line(model="fr"), lora={"adapters": {"fr": "/fr"}})
    assert request["adapter"] == "fr"


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({}, "UnsupportedUrl"),
        (line("/v1/images"), "UnsupportedUrl"),
        (line() | {"url": ["x"]}, "UnsupportedUrl"),
        (line() | {"url": {}}, "UnsupportedUrl"),
        (line() | {"method": "GET"}, "BadMethod"),
        (line() | {"method": None}, "BadMethod"),
        (line() | {"body": "x"}, "BadBody"),
        (line() | {"body": None}, "BadBody"),
        (line(nonsense=1), "UnsupportedParameter"),
        (line(stream=True), "UnsupportedParameter"),
        (line(COMPLETIONS, echo=True), "UnsupportedParameter"),
        (line(messages=[]), "BadMessages"),
        (line(messages="x"), "BadMessages"),
        (line(COMPLETIONS, prompt=""), "BadPrompt"),
        (line(COMPLETIONS, prompt=[]), "BadPrompt"),
        (line(COMPLETIONS, prompt=["a", ""]), "BadPrompt"),
        (line(COMPLETIONS, prompt={"a": 1}), "BadPrompt"),
        (line(EMBEDDINGS, input=5), "BadPrompt"),
        (line(EMBEDDINGS, dimensions=[1]), "BadBody"),
        (line(EMBEDDINGS, dimensions=0), "BadBody"),
        (line(EMBEDDINGS, dimensions=True), "BadBody"),
        (line(EMBEDDINGS, temperature=1), "UnsupportedParameter"),
        (line(temperature="hot"), "BadSampling"),
        (line(n=0), "BadSampling"),
        (line(max_tokens=0), "BadSampling"),
        (line(logprobs=True, top_logprobs="x"), "BadSampling"),
        (line(COMPLETIONS, logprobs=True), "BadSampling"),
        (line(stop={"a": 1}), "BadSampling"),
        (line(response_format="json"), "BadResponseFormat"),
        (line(response_format={"type": "xml"}), "BadResponseFormat"),
        (line(response_format={"type": ["x"]}), "BadResponseFormat"),
        (line(response_format={"type": "json_schema"}), "BadResponseFormat"),
        (line(response_format={"type": "json_schema", "json_schema": "x"}), "BadResponseFormat"),
        (line(response_format={"type": "json_schema", "json_schema": {"schema": 5}}), "BadResponseFormat"),
        (line(tools=[TOOL]), "NoToolParser"),
        (line(tools="x"), "BadTools"),
        (line(tools=5), "BadTools"),
        (line(tools=[{"function": {"name": []}}]), "BadTools"),
        (line(tools=[{"function": None}]), "BadTools"),
        (line(tools=[TOOL], tool_choice="f"), "BadToolChoice"),
        (line(tools=[TOOL], tool_choice={"function": {"name": "g"}}), "BadToolChoice"),
        (line(tools=[TOOL], tool_choice={"function": "f"}), "BadToolChoice"),
        (line(tools=[TOOL], tool_choice={"function": {"name": ["f"]}}), "BadToolChoice"),
        (line(tools=[TOOL], tool_choice=5), "BadToolChoice"),
        (line(chat_template_kwargs="abc"), "BadBody"),
        (line(chat_template_kwargs=[1], reasoning_effort="low"), "BadBody"),
    ],
    ids=lambda value: json.dumps(value)[-80:],
)
def test_a_line_that_cannot_be_asked_fails(refusal, record, kind):
    assert refusal(record) == ("parse", kind)


@pytest.mark.parametrize("model", [["fr"], {"fr": 1}, 5], ids=str)
def test_a_model_that_is_no_name_is_no_adapter(ask, model):
    _, request = ask(line(model=model), lora={"adapters": {"fr": "/fr"}})
    assert "adapter" not in request


@pytest.mark.parametrize(
    ("url", "task"), [(EMBEDDINGS, "generate"), (EMBEDDINGS, "classify"), (CHAT, "embed"), (COMPLETIONS, "classify")]
)
def test_a_line_for_another_task_fails(refusal, url, task):
    assert refusal(line(url), task=task) == ("parse", "WrongTask")


@pytest.mark.parametrize("value", [None, "", 5, ["a"], {}], ids=str)
def test_a_line_without_a_custom_id_is_refused(value):
    with pytest.raises(RowError, match="custom_id is not there, or not text"):
        BatchLines.id_of({"custom_id": value})


def test_a_line_names_itself():
    assert BatchLines.id_of(line()) == "a"


def test_a_result_has_openais_form():
    assert json.loads(result_line('r"1', "ü", '{"object": "x"}', None)) == {
        "id": 'batch_req_r"1',
        "custom_id": "ü",
        "response": {"status_code": 200, "request_id": 'r"1', "body": {"object": "x"}},
        "error": None,
    }


def test_a_failure_has_openais_form():
    assert json.loads(result_line("a:0", None, None, {"error_type": "BadBody", "error": "no\nbody"})) == {
        "id": "batch_req_a:0",
        "custom_id": None,
        "response": None,
        "error": {"code": "BadBody", "message": "no\nbody"},
    }


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((3,), {"prompt_tokens": 3, "total_tokens": 3}),
        ((3, 0), {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}),
        ((3, 2), {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}),
    ],
)
def test_tokens_are_counted_in_openais_form(counts, told):
    assert usage(*counts) == told


LOGPROBS = [
    {
        "token": token,
        "logprob": -1.0,
        "top": [{"token": token, "logprob": -1.0}, {"token": "x", "logprob": float("-inf")}],
    }
    for token in ("ab", "é")
]


def test_logprobs_of_a_chat_are_in_its_form_and_finite():
    found = chat_logprobs(LOGPROBS)["content"][1]
    assert found == {
        "token": "é",
        "logprob": -1.0,
        "bytes": [195, 169],
        "top_logprobs": [
            {"token": "é", "logprob": -1.0, "bytes": [195, 169]},
            {"token": "x", "logprob": -9999.0, "bytes": [120]},
        ],
    }


def test_logprobs_of_a_completion_are_in_its_form_and_finite():
    assert completion_logprobs(LOGPROBS) == {
        "text_offset": [0, 2],
        "token_logprobs": [-1.0, -1.0],
        "tokens": ["ab", "é"],
        "top_logprobs": [{"ab": -1.0, "x": -9999.0}, {"é": -1.0, "x": -9999.0}],
    }


def test_no_logprobs_are_none():
    assert (chat_logprobs(None), completion_logprobs(None)) == (None, None)
