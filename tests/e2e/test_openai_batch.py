"""OpenAI batch files through Rayferry and through vLLM's own `run_batch`: the same answers for every custom_id."""

import json
import math

import jsonschema
import pytest

from .batches import SCHEMA, generating, run_rayferry
from .conftest import MAX_TOKENS, PROMPTS, run

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def generated(model, job_file, chats_by_run_batch, completions_by_server):
    """The results of Rayferry and of vLLM itself, each by custom_id."""
    chats, completions = generating(model, PROMPTS, MAX_TOKENS)
    return run_rayferry("openai", chats + completions, job_file, run), chats_by_run_batch | completions_by_server


def test_every_line_has_a_result(generated, model):
    asked = {line["custom_id"] for lines in generating(model, PROMPTS, MAX_TOKENS) for line in lines}
    assert set(generated[0]) == set(generated[1]) == asked


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


@pytest.mark.slow
def test_embeddings_are_those_of_run_batch(embedded, embedded_by_run_batch):
    assert set(embedded) == set(embedded_by_run_batch)
    for name, body in embedded_by_run_batch.items():
        assert embedded[name]["usage"]["prompt_tokens"] == body["usage"]["prompt_tokens"]
        for one, other in zip(embedded[name]["data"], body["data"], strict=True):
            assert math.dist(one["embedding"], other["embedding"]) < 1e-3
