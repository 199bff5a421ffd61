import base64
import io
import json

import pytest

from rayferry.job.calls import Call, calls_of, fetch_image
from rayferry.job.rows import RowError

Image = pytest.importorskip("PIL.Image")


def png():
    stream = io.BytesIO()
    Image.new("RGBA", (3, 2), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("prompt", "request_", "call"),
    [
        ("p", None, Call("p")),
        ("p", {}, Call("p")),
        (None, {"token_ids": [1, 2]}, Call([1, 2])),
        ("p", {"document": "d", "adapter": "fr"}, Call("p", document="d", adapter="fr")),
        ("[]", {"messages": [{"role": "user"}]}, Call("[]", messages=[{"role": "user"}])),
        ("p", {"sampling": {"logit_bias": {"5": 1.0}}}, Call("p", sampling={"logit_bias": {5: 1.0}})),
        ("p", {"openai": {"url": "u"}, "prompts": ["p"]}, Call("p", model_defaults=True)),
    ],
)
def test_a_row_is_a_call(prompt, request_, call):
    assert calls_of(prompt, None if request_ is None else json.dumps(request_)) == [call]


def test_a_row_of_several_prompts_is_several_calls():
    request = json.dumps({"prompts": ["a", [1]], "dimensions": 5})
    assert calls_of("x", request) == [Call("a", dimensions=5), Call([1], dimensions=5)]


@pytest.mark.parametrize("request_", ["[" * 100_000, "{", '"too deep to be written"'], ids=lambda text: text[:9])
def test_a_request_that_cannot_be_read_is_the_rows_failure(request_):
    with pytest.raises(RowError) as caught:
        calls_of("p", request_)
    assert caught.value.stage == "parse"


@pytest.mark.parametrize("form", ["data", "path", "file", "s3"])
def test_an_image_is_fetched_from_wherever_it_is(form, tmp_path, request):
    path = tmp_path / "a b.png"
    path.write_bytes(png())
    uri = {"data": "data:;base64," + base64.b64encode(png()).decode(), "path": str(path), "file": path.as_uri()}.get(
        form
    )
    if uri is None:
        from rayferry.job import storage

        uri = request.getfixturevalue("bucket_uri") + "/a.png"
        storage.write_bytes(uri, png())
    image = fetch_image(uri)
    assert (image.size, image.mode) == ((3, 2), "RGB")


@pytest.mark.parametrize(
    ("uri", "stage"),
    [
        ("/nowhere/a.png", "read"),
        ("http://127.0.0.1:9/a.png", "read"),
        ("http://no host/ü", "read"),
        ("/nul\0", "read"),
        ("ftp://a/b.png", "parse"),
        ("a.png", "parse"),
        ("data:;base64,@@", "decode"),
        ("data:;base64,eHh4", "decode"),
        ("data:nothing", "decode"),
    ],
)
def test_an_image_that_is_none_is_the_rows_failure(uri, stage):
    with pytest.raises(RowError) as caught:
        fetch_image(uri)
    assert caught.value.stage == stage
