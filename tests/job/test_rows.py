import datetime as dt
import json

import pyarrow as pa
import pytest

from rayferry.job.rows import (
    ERROR_SCHEMA,
    SOURCE_SCHEMA,
    RowError,
    answer_schema,
    clean,
    data_schema,
    json_text,
    own_name,
    raw_text,
    reserved_names,
)

VECTOR = pa.list_(pa.float32())
GENERATED = ["generated_text", "finish_reason", "num_input_tokens", "num_generated_tokens"]


@pytest.mark.parametrize(
    ("job", "openai", "names"),
    [
        ({}, False, GENERATED),
        ({"task": "chat"}, False, GENERATED),
        ({"sampling": {"n": 1}}, False, GENERATED),
        ({"sampling": {"n": 2}}, False, [*GENERATED, "outputs"]),
        ({"sampling": {"logprobs": 0}}, False, [*GENERATED, "outputs"]),
        ({"input": {"sampling_column": "s"}}, False, [*GENERATED, "outputs"]),
        ({}, True, [*GENERATED, "outputs"]),
        ({"task": "embed"}, False, ["embedding", "num_input_tokens"]),
        ({"task": "embed"}, True, ["embedding", "num_input_tokens", "embeddings"]),
        ({"task": "classify"}, False, ["label", "probs", "num_input_tokens"]),
        ({"task": "score", "input": {"document_column": "d"}}, False, ["score", "num_input_tokens"]),
    ],
    ids=str,
)
def test_every_task_has_its_columns(make_spec, job, openai, names):
    assert answer_schema(make_spec(**job), openai=openai).names == [*names, "model"]


def test_data_is_ours_then_the_answer_then_the_inputs_own(make_spec):
    own = pa.schema([("n", pa.int64())])
    assert data_schema(make_spec(), own, openai=False).names == ["id", "prompt", *GENERATED, "model", "n"]


def test_the_errors_columns_are_those_of_the_contract():
    assert ERROR_SCHEMA.names == ["id", "source_uri", "position", "stage", "error_type", "error", "raw"]


def test_every_name_of_ours_is_reserved(make_spec):
    answers = answer_schema(make_spec(), openai=False)
    assert {"id", "prompt", "rescued_data", *SOURCE_SCHEMA.names, *answers.names} <= reserved_names(answers)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("id", "input_id"),
        ("input_id", "input_input_id"),
        ("input_input_id", "input_input_input_id"),
        ("input_n", "input_n"),
        ("text", "text"),
        ("ID", "ID"),
        ("", ""),
        ("input", "input"),
    ],
)
def test_an_input_column_gets_another_name_only_if_its_own_is_ours(name, found):
    assert own_name(name, {"id"}) == found


def test_a_failure_is_three_columns():
    assert RowError("parse", "BadPrompt", "empty").columns() == {
        "stage": "parse",
        "error_type": "BadPrompt",
        "error": "empty",
    }


def test_the_columns_of_a_failure_can_be_written_whatever_its_message():
    assert RowError("template", "X", "\ud800!").columns()["error"] == "?!"


@pytest.mark.parametrize(("text", "kept"), [("aü😀\0", "aü😀\0"), ("a\ud800b", "a?b")])
def test_text_is_cleaned_of_lone_surrogates(text, kept):
    assert clean(text) == kept


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": "naïve 漢字"}, '{"a": "naïve 漢字"}'),
        (b"a\xff", '"a\ufffd"'),
        (dt.date(2024, 5, 1), '"2024-05-01"'),
        ("\ud800", '"?"'),
        (None, "null"),
    ],
    ids=ascii,
)
def test_any_value_has_a_form_as_json(value, text):
    assert json_text(value) == text


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [deep(5000), {b"key": 1}, {(1, 2): 1}], ids=["deep", "bytes", "tuple"])
def test_what_cannot_be_written_as_json_is_still_json(value):
    assert isinstance(json.loads(json_text(value)), str)


def test_raw_text_is_cut():
    assert len(raw_text({"text": "x" * 10_000, "more": b"x" * 10_000})) == 4096
