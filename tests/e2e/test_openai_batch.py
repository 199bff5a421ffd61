"""OpenAI batch files through Rayferry and through vLLM's own `run_batch`: the same answers for every custom_id."""

import json
import math

import jsonschema
import pytest

from .batches import SCHEMA, ask_server, lines_of, run_batch, run_rayferry
from .conftest import MAX_TOKENS, PROMPTS, run

pytestmark = pytest.mark.e2e

CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo")]


def chat(content, **body):
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16} | body


def generating(model):
    chats = [
        *(chat(f"What is the capital of {country}?") for country, _ in CAPITALS),
        chat("Count to ten.", max_tokens=8, stop=["three"]),
        chat("Tell me a story.", max_completion_tokens=5, logprobs=True, top_logprobs=2),
        chat("Describe a person.", max_tokens=60, response_format={"type": "json_schema", "json_schema":
             {"name": "person", "schema": SCHEMA}}),
        {"messages": [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Sky colour?"}],
         "temperature": 0, "max_tokens": 8, "seed": 3},
        chat("No limit: say yes.", max_tokens=None, stop=["\n", "."]),
    ]  # fmt: skip
    completions = [
        {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 6},
        {"prompt": ["Once upon a time", "Water boils at"], "temperature": 0, "max_tokens": 6, "logprobs": 1},
        {"prompt": "One two three", "temperature": 0},
        {"prompt": [504, 3575, 282, 4649, 314], "temperature": 0, "max_tokens": 4},
    ]
    completions += [{"prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS} for prompt in PROMPTS]
    chat_lines = lines_of("chat", "/v1/chat/completions", chats, model)
    return chat_lines, lines_of("completion", "/v1/completions", completions, model)


@pytest.fixture(scope="module")
def generated(model, job_file, tmp_path_factory):
    chats, completions = generating(model)
    folder = tmp_path_factory.mktemp("openai")
    theirs = run_batch(chats, folder, model) | ask_server(completions, folder, model)
    return run_rayferry("openai", chats + completions, job_file, run), theirs


def test_every_line_has_a_result(generated, model):
    assert (
        set(generated[0]) == set(generated[1]) == {line["custom_id"] for lines in generating(model) for line in lines}
    )


@pytest.mark.parametrize("field", ["usage", "choices"])
def test_generated_results_are_those_of_run_batch(generated, field):
    def told(body):
        if field == "usage":
            return {name: body["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        return [
            (choice["index"], choice.get("text"), (choice.get("message") or {}).get("content"), choice["finish_reason"])
            for choice in body["choices"]
        ]

    ours, theirs = generated
    assert {name: told(body) for name, body in ours.items()} == {name: told(body) for name, body in theirs.items()}


def test_log_probabilities_are_those_of_run_batch(generated):
    ours, theirs = (
        [told_logprobs(side["chat-4"]["choices"][0]), side["completion-1"]["choices"]] for side in generated
    )
    assert [tokens for tokens, _ in ours[0]] == [tokens for tokens, _ in theirs[0]]
    assert [found for _, found in ours[0]] == pytest.approx([found for _, found in theirs[0]], abs=1e-3)
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert one["logprobs"]["tokens"] == other["logprobs"]["tokens"]
        assert one["logprobs"]["token_logprobs"] == pytest.approx(other["logprobs"]["token_logprobs"], abs=1e-3)


def told_logprobs(choice):
    content = choice["logprobs"]["content"]
    return [([one["token"], *(other["token"] for other in one["top_logprobs"])], one["logprob"]) for one in content]


def test_an_answer_with_a_json_schema_satisfies_it(generated):
    answer = json.loads(generated[0]["chat-5"]["choices"][0]["message"]["content"])
    jsonschema.validate(answer, SCHEMA)


def test_prompts_as_openai_lines_have_the_answers_of_llm_generate(generated, same_engine):
    first = 4  # of the completions, before PROMPTS
    texts = [generated[0][f"completion-{first + at}"]["choices"][0]["text"] for at in range(len(PROMPTS))]
    assert texts == [answer["text"] for answer in same_engine["generate"]]


def test_embeddings_are_those_of_run_batch(embedded):
    ours, theirs = embedded
    assert set(ours) == set(theirs)
    for name, body in theirs.items():
        assert ours[name]["usage"]["prompt_tokens"] == body["usage"]["prompt_tokens"]
        for one, other in zip(ours[name]["data"], body["data"], strict=True):
            assert math.dist(one["embedding"], other["embedding"]) < 1e-3
