import pytest

from rayferry.job.errors import SpecError


@pytest.mark.parametrize(
    ("options", "anonymous"),
    [
        ({}, False),
        ({"anonymous": True}, True),
        ({"uri": "s3://anonymous@bucket/in"}, True),
        ({"uri": ["s3://anonymous@bucket/in", "s3://anonymous@bucket/more"]}, True),
    ],
)
def test_an_input_is_anonymous_by_its_uri_or_by_its_key(make_spec, options, anonymous):
    assert make_spec(input=options).input.is_anonymous is anonymous


@pytest.mark.parametrize(
    ("uri", "uris"),
    [("/in/*.txt", ["/in/*.txt"]), (["s3://bucket/a", "s3://bucket/b"], ["s3://bucket/a", "s3://bucket/b"])],
)
def test_one_uri_or_several_make_a_list(make_spec, uri, uris):
    assert make_spec(input={"uri": uri}).input.uris == uris


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"uri": []}, "input.uri: []: the list is empty; give at least one URI"),
        ({"uri": 5}, "input.uri: 5: must be text or a list"),
        ({"uri": [5]}, "input.uri.0: 5: must be text"),
        ({"uri": ["s3://bucket/a", "nowhere"]}, "nowhere: not a URI that can be used here"),
        ({"uri": ["s3://bucket/a", "/b"]}, "must be alike"),
        ({"uri": ["s3://bucket/a", "s3://anonymous@bucket/b"]}, "must be alike"),
        ({"column": "a", "template": "b"}, "give only one of column and template"),
        ({"messages_column": "a", "token_ids_column": "b"}, "give only one of messages_column and token_ids_column"),
        ({"template": "{{ a"}, "input.template: '{{ a': not a Jinja template: "),
        ({"template": "{% for %}"}, "not a Jinja template: "),
        ({"format": "openai", "column": "a"}, "column has no meaning for OpenAI batch files"),
        ({"format": "openai", "id_column": "a"}, "id_column has no meaning for OpenAI batch files"),
        ({"format": "xml"}, "input.format: 'xml': input should be 'auto', 'text'"),
        ({"colum": "a"}, "input.colum: unknown key; did you mean 'column'?"),
    ],
    ids=str,
)  # fmt: skip
def test_an_input_that_means_nothing_is_refused(make_spec, options, said):
    with pytest.raises(SpecError) as caught:
        make_spec(input=options)
    assert said in str(caught.value)
