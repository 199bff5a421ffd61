from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError, model_validator

from rayferry.job.explain import explain
from rayferry.job.typed import Typed


class Range(Typed):
    min: int = 1
    max: int

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.min > self.max:
            msg = "Min is above max"
            raise ValueError(msg)
        return self


class Thing(Typed):
    size: int | None = None
    names: str | list[str] = "a"
    range: Range | None = None
    aliased: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    share: float = Field(0.5, le=1)


def lines(data):
    with pytest.raises(ValidationError) as caught:
        Thing.model_validate(data)
    return explain(caught.value.errors(include_url=False), Thing)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"sise": 1}, "sise: unknown key; did you mean 'size'?"),
        ({"max": 1}, "max: unknown key; did you mean 'range.max'?"),
        ({"zzz": 1}, "zzz: unknown key; known: size, names, range, json, share"),
        ({"range": {"maxx": 1, "max": 1}}, "range.maxx: unknown key; did you mean 'max'?"),
        ({"range": {}}, "range.max: required, but not there"),
        ({"range": {"min": 2, "max": 1}}, "range: Min is above max"),
        ({"range": 5}, "range: 5: must be a mapping of keys to values"),
        ({"names": 5}, "names: 5: must be text or a list"),
        ({"names": ["a", 5]}, "names.1: 5: must be text"),
        ({"size": "1"}, "size: '1': must be a whole number"),
        ({"json": []}, "json: []: must be a mapping of keys to values"),
        ({"share": 2}, "share: 2: input should be less than or equal to 1"),
        ([], "(top level): []: must be a mapping of keys to values"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_once_with_its_place_its_value_and_what_it_should_be(data, line):
    assert lines(data) == [line]


def test_each_fault_has_its_line():
    assert lines({"size": "1", "sise": 1, "share": 2}) == [
        "size: '1': must be a whole number",
        "share: 2: input should be less than or equal to 1",
        "sise: unknown key; did you mean 'size'?",
    ]


def test_a_long_value_is_cut():
    assert lines({"size": "9" * 5000}) == [f"size: '{'9' * 76}...: must be a whole number"]
