import jinja2
import pytest

from rayferry.job.base_engine import stage_of


class TooLongError(ValueError):
    parameter = "input_tokens"


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
