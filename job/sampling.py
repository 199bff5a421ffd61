"""How a model is asked to answer: for the whole job, or for one row."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from rayferry.job.typed import Typed

_CONSTRAINTS = ("json_schema", "json_object", "regex", "choice", "grammar")


class StructuredOutputsSpec(Typed):
    """What form an answer must have; exactly one kind.

    Source: https://docs.vllm.ai/en/latest/features/structured_outputs/
    """

    json_schema: dict[str, Any] | None = Field(None, alias="json", description="a JSON Schema that answers satisfy")
    json_object: bool | None = Field(None, description="any JSON object")
    regex: str | None = Field(None, description="a regular expression that the whole answer matches")
    choice: list[str] | None = Field(None, min_length=1, description="the answers that there are")
    grammar: str | None = Field(None, description="a context-free grammar, in the form that vLLM takes")

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputsSpec":
        given = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            msg = "give exactly one of json, json_object, regex, choice and grammar"
            raise ValueError(msg)
        return self


class SamplingSpec(Typed):
    """Sampling parameters, by vLLM's names; what is left out keeps vLLM's default (max_tokens apart).

    Source: https://docs.vllm.ai/en/latest/api/vllm/sampling_params.html
    """

    n: int | None = Field(None, ge=1, le=16384, description="answers for each prompt, kept in the column outputs")
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(256, ge=1, lt=2**31, description="most tokens of an answer; null: as many as fit")
    min_tokens: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[Annotated[int, Field(strict=False)], float] | None = None
    logprobs: int | None = Field(None, ge=0, description="most likely tokens to keep at each place, in outputs")
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: StructuredOutputsSpec | None = Field(None, description="the form that an answer must have")

    @model_validator(mode="after")
    def _possible(self) -> "SamplingSpec":
        if self.temperature == 0 and (self.n or 1) > 1:
            msg = f"n: {self.n} answers at temperature 0 would all be the same; set a temperature, or leave n out"
            raise ValueError(msg)
        if self.min_tokens and self.max_tokens and self.min_tokens > self.max_tokens:
            msg = f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})"
            raise ValueError(msg)
        return self

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `vllm.SamplingParams`: only what the user set, and max_tokens."""
        kwargs = self.model_dump(exclude_none=True, by_alias=True)
        return kwargs | {"max_tokens": self.max_tokens}
