"""S3 from the laptop: a real server, and every way in which one cannot be used, in plain words."""

import time
import uuid

import pytest
from botocore import exceptions as boto

from rayferry.submit import s3
from rayferry.submit.local.ports import free_ports
from rayferry.submit.s3 import NoAccessError, NotThereError, StorageError

ODD_NAMES = ["a b", "a+b", "a%20b", "a#b", "a?b", "a&b=c", "é", "日本", "a'b", "x/y/z", "~a", "a;b"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b", ("bucket", "a/b")),
        ("s3://bucket/a/", ("bucket", "a/")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://anonymous@bucket/a", ("bucket", "a")),
        ("s3://bucket/a#b", ("bucket", "a#b")),
        ("s3://bucket/a?b", ("bucket", "a?b")),
        ("s3://bucket/a%20b", ("bucket", "a%20b")),
        ("s3://[bucket/a", ("[bucket", "a")),
    ],
)
def test_a_uri_is_split_into_bucket_and_key(uri, expected):
    assert s3.split(uri) == expected


@pytest.mark.parametrize(
    ("uri", "expected"), [("s3://b/x", True), ("/s3://", False), ("file:///x", False), ("", False)]
)
def test_s3_uris_are_told_from_paths(uri, expected):
    assert s3.is_s3(uri) is expected


def test_what_is_written_is_read(bucket_uri):
    s3.write_bytes(f"{bucket_uri}/a", b"content")
    assert s3.read_bytes(f"{bucket_uri}/a") == b"content"


def test_an_objects_age_is_told(bucket_uri):
    s3.write_bytes(f"{bucket_uri}/a", b"content")
    assert abs(s3.modified_ms(f"{bucket_uri}/a") / 1000 - time.time()) < 60


@pytest.mark.parametrize("of", ["{bucket}/never", "{folder}/never"])
def test_what_is_not_there_has_no_age(bucket_uri, tmp_path, of):
    with pytest.raises(NotThereError, match="never: not there"):
        s3.modified_ms(of.format(bucket=bucket_uri, folder=tmp_path))


def test_what_is_deleted_is_not_there(bucket_uri):
    s3.write_bytes(f"{bucket_uri}/a", b"content")
    s3.delete(f"{bucket_uri}/a")
    with pytest.raises(NotThereError, match=f"^{bucket_uri}/a: not there$"):
        s3.read_bytes(f"{bucket_uri}/a")


def test_deleting_twice_is_no_error(bucket_uri):
    s3.delete(f"{bucket_uri}/never")


def test_objects_of_any_name_are_listed_and_read_by_what_was_listed(bucket_uri):
    for name in ODD_NAMES:
        s3.client().put_object(Bucket="rayferry", Key=f"{s3.split(bucket_uri)[1]}/{name}", Body=name.encode())
    read = {uri: s3.read_bytes(uri).decode() for uri, _ in s3.list_keys(bucket_uri, 100)}
    assert read == {f"{bucket_uri}/{name}": name for name in ODD_NAMES}


def test_a_listing_tells_names_and_sizes_and_stops_at_its_limit(bucket_uri):
    for number in range(3):
        s3.write_bytes(f"{bucket_uri}/{number}", b"x" * number)
    assert s3.list_keys(bucket_uri, 2) == [(f"{bucket_uri}/0", 0), (f"{bucket_uri}/1", 1)]


def test_a_prefix_without_objects_lists_as_nothing(bucket_uri):
    assert s3.list_keys(bucket_uri, 10) == []


OPERATIONS = {
    "read": s3.read_bytes,
    "write": lambda uri: s3.write_bytes(uri, b""),
    "delete": s3.delete,
    "list": lambda uri: s3.list_keys(uri, 1),
}


@pytest.fixture(params=OPERATIONS)
def use(request):
    return OPERATIONS[request.param]


@pytest.mark.parametrize("name", ["read", "delete", "list"])  # this server makes the bucket of a first write
def test_a_bucket_that_does_not_exist_is_named(stack, name):
    bucket = f"none-{uuid.uuid4().hex}"
    with pytest.raises(StorageError, match=f"^s3://{bucket}/a: there is no bucket '{bucket}' at this endpoint"):
        OPERATIONS[name](f"s3://{bucket}/a")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_told_as_such(bucket_uri, other_account, variable):
    other_account(**{variable: "wrong"})
    with pytest.raises(StorageError, match=f"^{bucket_uri}: the AWS credentials here are not valid"):
        s3.list_keys(bucket_uri, 1)


def test_an_endpoint_that_is_down_is_named(bucket_uri, monkeypatch):
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match=rf"^{bucket_uri}: the S3 endpoint does not answer \({endpoint}\)"):
        s3.list_keys(bucket_uri, 1)


@pytest.mark.parametrize("name", ["read", "list"])
def test_no_credentials_are_told_apart_from_wrong_ones(bucket_uri, other_account, name):
    other_account(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    with pytest.raises(NoAccessError, match=rf"^{bucket_uri}: no AWS credentials here .*set AWS_PROFILE"):
        OPERATIONS[name](bucket_uri)


def test_a_profile_that_does_not_exist_is_named(bucket_uri, other_account):
    other_account(AWS_PROFILE="nobody")
    with pytest.raises(NoAccessError, match="nobody"):
        s3.list_keys(bucket_uri, 1)


def test_half_of_the_credentials_is_an_error_of_storage(bucket_uri, other_account):
    other_account(AWS_SECRET_ACCESS_KEY="")
    with pytest.raises(StorageError, match=r"(?i)secret_access_key"):
        s3.list_keys(bucket_uri, 1)


@pytest.mark.parametrize("endpoint", ["not-a-url", "http://", "127.0.0.1:8333"])
def test_an_endpoint_that_is_no_url_is_an_error_of_storage(bucket_uri, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="check AWS_ENDPOINT_URL"):
        s3.list_keys(bucket_uri, 1)


def test_an_anonymous_listing_of_a_private_bucket_is_denied(bucket_uri):
    with pytest.raises(StorageError, match="access denied"):
        s3.list_keys(bucket_uri, 1, anonymous=True)


def test_an_anonymous_listing_needs_no_credentials(bucket_uri, other_account):
    other_account(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    with pytest.raises(StorageError) as caught:
        s3.list_keys(bucket_uri, 1, anonymous=True)
    assert not isinstance(caught.value, NoAccessError)


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://UPPER_case!/x", "s3://[x"])
def test_what_is_no_bucket_is_an_error_of_storage(stack, use, uri):
    with pytest.raises(StorageError):
        use(uri)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("NoSuchBucket", 404, "there is no bucket 'bucket' at this endpoint"),
        ("NoSuchKey", 404, "s3://bucket/a: not there"),
        ("404", 404, "s3://bucket/a: not there"),
        ("InvalidAccessKeyId", 403, r"not valid \(InvalidAccessKeyId\)"),
        ("SignatureDoesNotMatch", 403, r"not valid \(SignatureDoesNotMatch\)"),
        ("ExpiredToken", 400, r"not valid \(ExpiredToken\); renew them"),
        ("AccessDenied", 403, "access denied.*lack a permission on 'bucket'"),
        ("403", 403, "access denied"),
        ("PermanentRedirect", 301, "in another region; set AWS_REGION"),
        ("AuthorizationHeaderMalformed", 400, "in another region; set AWS_REGION"),
        ("SlowDown", 503, "S3 answered SlowDown please wait"),
        ("", None, "S3 answered"),
    ],
)
def test_each_answer_of_s3_is_told_in_plain_words(code, status, said):
    answer = {"Error": {"Code": code, "Message": "please wait"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(StorageError, match=said), s3.explained("s3://bucket/a"):
        raise boto.ClientError(answer, "GetObject")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_path_is_read_like_an_object(tmp_path, form):
    (tmp_path / "a").write_bytes(b"content")
    assert s3.read_bytes(form.format(tmp_path / "a")) == b"content"


def test_a_path_that_is_not_there_is_not_there(tmp_path):
    with pytest.raises(NotThereError):
        s3.read_bytes(str(tmp_path / "a"))


def test_a_path_below_a_file_is_not_there(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NotThereError):
        s3.read_bytes(str(tmp_path / "a" / "b"))


def test_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(StorageError):
        s3.read_bytes(str(tmp_path))


def test_a_folder_lists_its_files_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1").write_bytes(b"x")
    (tmp_path / "a").write_bytes(b"")
    assert s3.list_keys(str(tmp_path), 10) == [(str(tmp_path / "a"), 0), (str(tmp_path / "b" / "1"), 1)]


def test_a_file_lists_itself(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    assert s3.list_keys(str(tmp_path / "a"), 10) == [(str(tmp_path / "a"), 1)]


def test_a_folder_that_is_not_there_lists_as_nothing(tmp_path):
    assert s3.list_keys(str(tmp_path / "none"), 10) == []
