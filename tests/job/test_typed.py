import pytest
from pydantic import ValidationError

from rayferry.job.typed import Typed, check_plain_uri, check_uri


class Thing(Typed):
    number: float = 1.0
    count: int = 1


@pytest.mark.parametrize(
    "given", [{"unknown": 1}, {"count": 1.0}, {"count": "1"}, {"count": True}, {"number": float("nan")}], ids=str
)
def test_a_value_is_never_bent_to_fit(given):
    with pytest.raises(ValidationError):
        Thing.model_validate(given)


def test_a_value_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Thing().count = 2


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/key",
        "s3://bucket",
        "s3://my.bucket-1/a b/ü.txt",
        "s3://anonymous@bucket/key",
        "s3://bucket/in/**/a?.txt",
        "s3://bucket/a#b",
        "file:///data/in",
        "/data/in",
        "/data/50%.txt",
        "/data/[ab]*.txt",
    ],
)
def test_a_place_that_can_be_used_is_accepted_as_it_is(uri):
    assert check_uri(uri) == uri


BAD = [
    "",
    "data/in",
    "./in",
    "~/in",
    "s3://",
    "s3:///key",
    "s3://b/key",
    "s3://Bucket/key",
    "s3://key:secret@bucket/in",
    "s3://anonymous@/in",
    "s3://buck*/in",
    "s3a://bucket/in",
    "gs://bucket/in",
    "https://bucket.s3.amazonaws.com/in",
    "file://data/in",
    "file:data/in",
    "s3://[bucket/in",
]


@pytest.mark.parametrize("uri", BAD)
@pytest.mark.parametrize("check", [check_uri, check_plain_uri])
def test_a_place_that_cannot_be_used_is_refused(check, uri):
    with pytest.raises(ValueError, match=r".+"):
        check(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/in?region=eu-west-1", "s3://bucket/in#part", "/data/a?b"])
def test_a_place_to_write_to_holds_no_settings(uri):
    with pytest.raises(ValueError, match="may not carry"):
        check_plain_uri(uri)
