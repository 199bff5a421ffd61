import pytest
from pydantic import ValidationError

from rayferry.job.sampling import SamplingSpec


def sampling(**given):
    return SamplingSpec.model_validate(given)


@pytest.mark.parametrize(
    ("given", "kwargs"),
    [
        ({}, {"max_tokens": 256}),
        ({"max_tokens": None}, {"max_tokens": None}),
        ({"temperature": 0, "stop": ["\n"]}, {"temperature": 0, "stop": ["\n"], "max_tokens": 256}),
        ({"logprobs": 0}, {"logprobs": 0, "max_tokens": 256}),
        ({"logit_bias": {"5": 1.5}}, {"logit_bias": {5: 1.5}, "max_tokens": 256}),
        (
            {"structured_outputs": {"json": {"type": "object", "default": None}}},
            {"structured_outputs": {"json": {"type": "object", "default": None}}, "max_tokens": 256},
        ),
    ],
    ids=str,
)
def test_vllm_gets_only_what_was_set_and_max_tokens(given, kwargs):
    assert sampling(**given).to_kwargs() == kwargs


@pytest.mark.parametrize(
    "given",
    [
        {"n": 0},
        {"n": 2, "temperature": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -2},
        {"max_tokens": 0},
        {"min_tokens": 9, "max_tokens": 8},
        {"seed": 2**63},
        {"stop": 5},
        {"logprobs": -1},
        {"logprobs": True},
        {"presence_penalty": 3},
        {"temprature": 1},
        {"logit_bias": {"a": 1.0}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"json_schema": {}}},
        {"structured_outputs": "json"},
    ],
    ids=str,
)
def test_what_no_engine_could_do_is_refused(given):
    with pytest.raises(ValidationError):
        sampling(**given)


@pytest.mark.parametrize(
    "form",
    [{"json": {}}, {"json_object": True}, {"regex": "a+"}, {"choice": ["a"]}, {"grammar": "root ::= 'a'"}],
    ids=str,
)
def test_an_answer_has_one_form(form):
    assert sampling(structured_outputs=form).to_kwargs()["structured_outputs"] == form
