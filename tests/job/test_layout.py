import pytest

from rayferry.job.layout import Layout


@pytest.mark.parametrize("spelling", ["s3://bucket/out", "s3://bucket/out/", "s3://bucket/out//"])
def test_every_spelling_of_a_prefix_is_the_same_layout(spelling):
    assert Layout(spelling) == Layout("s3://bucket/out/")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("data_uri", "data/"),
        ("errors_uri", "errors/"),
        ("meta_uri", "_meta/"),
        ("manifest_uri", "_meta/manifest.json"),
        ("progress_uri", "_meta/progress.json"),
        ("spec_uri", "_meta/spec.json"),
        ("driver_log_uri", "_meta/driver.log"),
        ("outcome_uri", "_meta/outcome.json"),
    ],
)
def test_every_key_lies_under_the_output_uri(name, key):
    assert getattr(Layout("s3://bucket/out"), name) == "s3://bucket/out/" + key


def test_a_bucket_alone_is_a_prefix():
    assert Layout("s3://bucket").data_uri == "s3://bucket/data/"
