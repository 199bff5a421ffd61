import json

import pytest

from rayferry.job.prompts import Prompter, compile_template, is_token_ids, messages
from rayferry.job.rows import RowError

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def ask(make_spec):
    """Prompt and request of a record, by the `input` of a job."""

    def run(record, job=None, **options):
        return Prompter(make_spec(input=options, **(job or {})))(record)

    return run


@pytest.fixture
def refusal(ask):
    def run(record, job=None, **options):
        with pytest.raises(RowError) as caught:
            ask(record, job, **options)
        return caught.value.stage, caught.value.error_type

    return run


@pytest.mark.parametrize(
    ("record", "column", "prompt"),
    [
        ({"text": "t", "prompt": "p"}, None, "t"),
        ({"prompt": "p"}, None, "p"),
        ({"text": None, "prompt": "p"}, None, "p"),
        ({"text": "t", "question": "q"}, "question", "q"),
        ({"text": "t", "prompt": "p"}, "prompt", "p"),
        ({"id": "x"}, "id", "x"),
    ],
)
def test_the_prompt_comes_from_the_column_that_is_named_or_from_text_or_prompt(ask, record, column, prompt):
    assert ask(record, column=column) == (prompt, {})


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"other": "a"}, "MissingColumn"),
        ({}, "MissingColumn"),
        ({"text": ""}, "BadPrompt"),
        ({"text": None}, "BadPrompt"),
        ({"text": []}, "BadPrompt"),
        ({"text": 5}, "BadPrompt"),
        ({"text": False}, "BadPrompt"),
        ({"text": {}}, "BadPrompt"),
        ({"text": b"bytes"}, "BadPrompt"),
        ({"messages": HI}, "MissingColumn"),
    ],
)
def test_a_row_without_a_prompt_fails(refusal, record, kind):
    assert refusal(record) == ("parse", kind)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"a": 1, "b": 2}, "no column 'text'; the row has: a, b"),
        ({"text": ""}, "column 'text' is empty"),
        ({"text": 5}, "column 'text' is a int, not text"),
    ],
)
def test_what_is_wrong_is_told(ask, record, error):
    with pytest.raises(RowError) as caught:
        ask(record)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("record", "template", "prompt"),
    [
        ({"a": 1, "b": "x"}, "{{ a }}-{{ b }}\n", "1-x\n"),
        ({"a b": "x"}, "{{ row['a b'] }}", "x"),
        ({"a": "{{ b }} {% raw %}"}, "{{ a }}", "{{ b }} {% raw %}"),
        ({"a": "<&>"}, "{{ a }}", "<&>"),
        ({"a": [1, 2]}, "{% for x in a %}{{ x }};{% endfor %}", "1;2;"),
        ({"self": "s", "row": "r"}, "{{ row.row }}", "r"),
        ({"meta": {"items": "i"}}, "{{ meta.items }}", "i"),
        ({"a": None}, "{{ a or 'none' }}", "none"),
    ],
)
def test_a_template_is_filled_with_the_rows_columns(ask, record, template, prompt):
    assert ask(record, template=template) == (prompt, {})


@pytest.mark.parametrize(
    ("record", "template", "kind"),
    [
        ({}, "{{ a }}", "UndefinedError"),
        ({"a": {}}, "{{ a.b }}", "UndefinedError"),
        ({"a": ""}, "{{ a }}", "EmptyPrompt"),
        ({"a": None}, "{{ a }}", "ValueError"),
        ({"meta": {}}, "{{ meta.items }}", "TypeError"),
        ({"a": 0}, "{{ 1 / a }}", "ZeroDivisionError"),
        ({"a": 55296}, "{{ '%c' % a }}", "UnicodeEncodeError"),
        ({"a": "x"}, "{{ a.__class__.__mro__ }}", "SecurityError"),
        ({"a": []}, "{{ a.append(1) }}", "SecurityError"),
        ({}, "{{ range(1000000) }}", "OverflowError"),
    ],
)
def test_a_template_that_fails_on_a_row_fails_that_row(refusal, record, template, kind):
    assert refusal(record, template=template) == ("template", kind)


def test_what_is_no_template_is_told_with_its_line():
    with pytest.raises(ValueError, match=r"not a Jinja template: .*\(line 2\)"):
        compile_template("a\n{% if %}")


@pytest.mark.parametrize("value", [HI, json.dumps(HI), [HI[0] | {"name": None}]], ids=["list", "json", "null field"])
def test_messages_come_as_a_list_or_as_json(ask, value):
    assert ask({"m": value}, {"task": "chat"}, messages_column="m") == (json.dumps(HI), {"messages": HI})


@pytest.mark.parametrize("name", ["text", "prompt", "messages"])
def test_a_list_in_a_chat_is_messages(ask, name):
    assert ask({name: HI}, {"task": "chat"}) == (json.dumps(HI), {"messages": HI})


def test_text_in_a_chat_is_a_prompt_whatever_it_looks_like(ask):
    assert ask({"text": json.dumps(HI)}, {"task": "chat"}) == (json.dumps(HI), {})


@pytest.mark.parametrize(
    "value",
    [None, "", "{", "[]", [], {}, 5, ["x"], [{"content": "no role"}], [{"role": 5}], [HI[0], None], "[" * 100_000],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_no_messages_is_refused(value):
    with pytest.raises(RowError) as caught:
        messages(value, "m")
    assert (caught.value.stage, caught.value.error_type) == ("parse", "BadMessages")


@pytest.mark.parametrize("value", [[1, 2], "[1, 2]"])
def test_token_ids_come_as_a_list_or_as_json(ask, value):
    assert ask({"t": value}, token_ids_column="t") == (None, {"token_ids": [1, 2]})


@pytest.mark.parametrize("value", [None, [], "x", "[]", [1.5], [True], [-1], ["1"], 5], ids=str)
def test_what_is_no_token_ids_is_refused(refusal, value):
    assert (is_token_ids(value), refusal({"t": value}, token_ids_column="t")) == (False, ("parse", "BadTokenIds"))


@pytest.mark.parametrize(
    ("value", "uris"),
    [
        ("s3://bucket/a.png", ["s3://bucket/a.png"]),
        (["/a.png", b"\xff"], ["/a.png", "data:;base64,/w=="]),
        ({"bytes": b"\xff", "path": "x"}, ["data:;base64,/w=="]),
        ({"bytes": None, "path": "/a.png"}, ["/a.png"]),
    ],
    ids=str,
)
def test_images_are_uris(ask, value, uris):
    assert ask({"text": "t", "i": value}, image_column="i") == ("t", {"images": uris})


@pytest.mark.parametrize("value", [None, "", b"", [], [None], 5, {}, {"bytes": 5}], ids=str)
def test_what_is_no_image_is_refused(refusal, value):
    assert refusal({"text": "t", "i": value}, image_column="i") == ("parse", "BadImage")


@pytest.mark.parametrize("value", [{"temperature": 0.5, "seed": None}, '{"temperature": 0.5}'], ids=str)
def test_a_rows_own_sampling_is_put_over_the_jobs(ask, value):
    _, request = ask(
        {"text": "t", "s": value}, {"sampling": {"max_tokens": 5, "temperature": 1.0}}, sampling_column="s"
    )
    assert request == {"sampling": {"max_tokens": 5, "temperature": 0.5}}


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_row_without_sampling_has_the_jobs(ask, value):
    assert ask({"text": "t", "s": value}, sampling_column="s") == ("t", {})


@pytest.mark.parametrize(
    "value", ["{", 5, [], {"temprature": 1}, {"temperature": "hot"}, {"n": 0}, "[" * 100_000], ids=lambda v: str(v)[:9]
)
def test_sampling_that_means_nothing_is_refused(refusal, value):
    assert refusal({"text": "t", "s": value}, sampling_column="s") == ("parse", "BadSampling")


LORA = {"lora": {"adapters": {"fr": "/fr"}}}


@pytest.mark.parametrize(("value", "request_"), [("fr", {"adapter": "fr"}), (None, {}), ("", {})])
def test_a_row_names_its_adapter(ask, value, request_):
    assert ask({"text": "t", "a": value}, LORA, adapter_column="a") == ("t", request_)


@pytest.mark.parametrize("value", ["de", 5, ["fr"], {"fr": 1}], ids=str)
def test_an_adapter_that_is_not_there_is_refused(refusal, value):
    assert refusal({"text": "t", "a": value}, LORA, adapter_column="a") == ("parse", "UnknownAdapter")


def test_a_document_is_scored_against_the_prompt(ask):
    record = {"text": "t", "d": "doc"}
    assert ask(record, {"task": "score"}, document_column="d") == ("t", {"document": "doc"})


@pytest.mark.parametrize(
    ("value", "name"), [("k", "k"), (5, "5"), (0, "0"), (True, "True"), (1.5, "1.5"), ("a/b ü\n", "a/b ü\n")]
)
def test_an_id_column_names_the_row(make_spec, value, name):
    assert Prompter(make_spec(input={"id_column": "k"})).id_of({"k": value}) == name


@pytest.mark.parametrize(
    ("record", "kind"),
    [({}, "MissingId"), ({"k": None}, "MissingId"), ({"k": ""}, "MissingId"), ({"k": []}, "BadId"),
     ({"k": {}}, "BadId"), ({"k": b"x"}, "BadId"), ({"k": "x" * 1025}, "BadId")],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_row_without_a_usable_id_is_refused(make_spec, record, kind):
    with pytest.raises(RowError) as caught:
        Prompter(make_spec(input={"id_column": "k"})).id_of(record)
    assert (caught.value.stage, caught.value.error_type) == ("parse", kind)


def test_a_job_without_an_id_column_names_no_row(make_spec):
    assert Prompter(make_spec()).id_of({"id": "x"}) is None
