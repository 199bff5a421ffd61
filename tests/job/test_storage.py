import json
import pickle
import signal
import socket
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import boto3
import pyarrow.fs as pafs
import pytest

from rayferry.job import storage
from rayferry.job.errors import JobError
from rayferry.job.storage import File
from rayferry.submit.local import stack as local_stack

from ..chaos.s3_proxy import S3Proxy  # noqa: TID252  # tests are no package that is installed


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    """A fresh prefix, in each of the two kinds of store."""
    if request.param == "folder":
        return str(tmp_path / "prefix")
    request.getfixturevalue("stack")
    return f"s3://{local_stack.BUCKET}/{uuid.uuid4().hex}"


def fill(place, *names, content=b"x"):
    for name in names:
        storage.write_bytes(f"{place}/{name}", content)


def names_under(place, **options):
    _, root = storage.filesystem(place)
    return [file.path.removeprefix(root + "/") for file in storage.list_files([place], **options)]


def read_bytes(uri):
    files, path = storage.filesystem(uri)
    with files.open_input_stream(path) as stream:
        return stream.read()


def test_files_are_listed_in_the_order_of_their_names(place):
    fill(place, "b.txt", "a/z.txt", "a.txt", "a/b/c.txt", "B.txt")
    assert names_under(place) == ["B.txt", "a.txt", "a/b/c.txt", "a/z.txt", "b.txt"]


def test_files_are_listed_with_their_sizes(place):
    fill(place, "a.txt", content=b"12345")
    assert [file.num_bytes for file in storage.list_files([place])] == [5]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_prefix_is_the_same_with_and_without_its_last_slash(place, end):
    fill(place, "a.txt")
    assert [file.label for file in storage.list_files([place + end])] == ["a.txt"]


def test_a_file_can_be_given_by_itself(place):
    fill(place, "a.txt", "a.txt.bak")
    assert [file.label for file in storage.list_files([place + "/a.txt"])] == ["a.txt"]


def test_a_file_given_by_itself_may_have_a_hidden_name(place):
    fill(place, "_a.txt")
    assert len(storage.list_files([place + "/_a.txt"])) == 1


def test_a_prefix_ends_at_a_slash(place):
    fill(place, "in/a.txt", "input/b.txt")
    assert len(storage.list_files([place + "/in"])) == 1


def test_files_without_a_byte_are_passed_over(place):
    fill(place, "a.txt")
    fill(place, "empty.txt", content=b"")
    assert names_under(place) == ["a.txt"]


def test_hidden_files_and_folders_are_passed_over(place):
    fill(place, "a.txt", "_SUCCESS", ".part.crc", "_temporary/b.txt", "x/.git/c.txt", "x/d_.txt")
    assert names_under(place) == ["a.txt", "x/d_.txt"]


@pytest.mark.parametrize(
    "name", ["a b.txt", "50%.txt", "a%20b.txt", "q?x.txt", "h#x.txt", "s;t.txt", "ü漢.txt", "+.txt"]
)
def test_any_name_is_listed_as_it_is(place, name):
    files, root = storage.filesystem(place)
    files.create_dir(root)
    with files.open_output_stream(f"{root}/{name}") as stream:
        stream.write(b"x")
    assert names_under(place) == [name]


def test_a_place_without_input_is_refused(place):
    with pytest.raises(JobError, match="no input there"):
        storage.list_files([place])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt"]),
        ("*", ["a.jsonl", "a.txt"]),
        ("**/*.txt", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("x/*.txt", ["x/b.txt"]),
        ("*/*.txt", ["x/b.txt"]),
        ("?.txt", ["a.txt"]),
        ("[a-b].txt", ["a.txt"]),
        ("x/**", ["x/b.txt", "x/y/c.txt"]),
    ],
)
def test_a_glob_finds_what_it_matches_and_nothing_hidden(place, pattern, names):
    fill(place, "a.txt", "a.jsonl", "x/b.txt", "x/y/c.txt", "_x.txt", ".z/d.txt")
    _, root = storage.filesystem(place)
    assert [file.path.removeprefix(root + "/") for file in storage.list_files([f"{place}/{pattern}"])] == names


def test_a_glob_in_a_file_uri_finds_the_same(tmp_path):
    fill(str(tmp_path), "a.txt", "ab.txt", "c.jsonl")
    assert [file.label for file in storage.list_files([f"file://{tmp_path}/?.txt"])] == ["a.txt"]


def test_a_glob_that_matches_nothing_is_refused(place):
    fill(place, "a.txt")
    with pytest.raises(JobError, match="no input there"):
        storage.list_files([place + "/*.csv"])


def test_a_file_whose_name_looks_like_a_glob_is_taken_by_its_name(place):
    fill(place, "a[1].txt", "a1.txt")
    assert [file.label for file in storage.list_files([place + "/a[1].txt"])] == ["a[1].txt"]


def test_several_uris_make_one_list_in_the_order_of_paths_without_repeats(place):
    fill(place, "b/x.txt", "a/y.txt")
    _, root = storage.filesystem(place)
    found = storage.list_files([place + "/b", place + "/a/", place + "/b/x.txt"])
    assert [file.path.removeprefix(root + "/") for file in found] == ["a/y.txt", "b/x.txt"]


def test_files_of_several_uris_are_labelled_by_their_whole_paths(place):
    fill(place, "a/x.txt", "b/x.txt")
    found = storage.list_files([place + "/a", place + "/b"])
    assert [file.label for file in found] == [file.path for file in found]


@pytest.mark.parametrize(("uri", "label"), [("", "a/x.txt"), ("/a/x.txt", "x.txt"), ("/a/*.txt", "x.txt")])
def test_a_file_of_one_uri_is_labelled_by_its_path_below_it(place, uri, label):
    fill(place, "a/x.txt")
    assert [file.label for file in storage.list_files([place + uri])] == [label]


def test_each_of_several_uris_must_hold_something(place):
    fill(place, "a/x.txt")
    with pytest.raises(JobError, match=r"/b: no input there"):
        storage.list_files([place + "/a", place + "/b"])


def test_a_place_with_nothing_but_hidden_files_is_refused(place):
    fill(place, "_SUCCESS")
    with pytest.raises(JobError, match="no input there"):
        storage.list_files([place])


@pytest.mark.parametrize(
    ("path", "data"),
    [("/a.txt", True), ("", True), ("/a/b_.txt", True), ("/_a/b.txt", False), ("/a/.b.txt", False), ("/_", False)],
)
def test_names_that_begin_with_an_underscore_or_a_dot_hold_no_data(path, data):
    assert storage.is_data(path) is data


def test_what_is_written_is_there_whole(place):
    content = bytes(range(256)) * 40_000
    fill(place, "a/b/c.bin", content=content)
    assert read_bytes(place + "/a/b/c.bin") == content


def test_what_is_written_again_is_replaced(place):
    fill(place, "a.txt", content=b"a longer one")
    fill(place, "a.txt", content=b"short")
    assert read_bytes(place + "/a.txt") == b"short"


@pytest.mark.parametrize("name", ["a.gz", "a.jsonl.gz", "a.zst", "a.bz2"])
def test_bytes_are_written_as_they_are_given_whatever_the_name(place, name):
    fill(place, name, content=b"given")
    files, path = storage.filesystem(f"{place}/{name}")
    with files.open_input_file(path) as f:  # never decompresses
        assert f.read() == b"given"


def test_no_draft_is_left_behind(tmp_path):
    storage.write_bytes(str(tmp_path / "a.txt"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("out/data/", ["a.parquet", "b.parquet"]),
        ("out/data", ["a.parquet", "b.parquet"]),
        ("out/", ["_meta", "data"]),
        ("out/err/", []),
        ("o/", []),
    ],
)
def test_children_are_the_names_right_below_a_prefix(place, uri, names):
    for name in ("data/b.parquet", "data/a.parquet", "_meta/spec.json"):
        fill(place, f"out/{name}")
    assert storage.children(f"{place}/{uri}") == names


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data/a%20b", "/data/a b"),
        ("file:/data/a", "/data/a"),
        ("file:///a?.txt", "/a?.txt"),
        ("file:///a#b%23", "/a#b#"),
    ],
)
def test_a_file_uri_is_a_path(uri, path):
    files, found = storage.filesystem(uri)
    assert (type(files), found) == (pafs.LocalFileSystem, path)


def test_a_path_is_taken_as_it_is():
    assert storage.filesystem("/data/a%20b?c#d")[1] == "/data/a%20b?c#d"


@pytest.mark.parametrize("uri", ["s3://bucket/a%20b", "s3://anonymous@bucket/a%20b"])
def test_an_s3_uri_is_a_bucket_and_a_key(stack, uri):
    assert storage.filesystem(uri)[1] == "bucket/a%20b"


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, ("http", "127.0.0.1:9000")),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000/"}, ("http", "127.0.0.1:9000")),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_ENDPOINT_URL_S3": "https://localhost:9001"},
            ("https", "localhost:9001"),
        ),
    ],
)
def test_the_endpoint_comes_from_the_environment(monkeypatch, variables, endpoint):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    files, _ = storage.filesystem("s3://bucket/key")
    options = files.__reduce__()[1][0]
    assert (options["scheme"], options["endpoint_override"]) == endpoint


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2"),
        ({}, "us-east-1"),
    ],
)
def test_the_region_comes_from_the_environment(monkeypatch, variables, region):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}).items():
        monkeypatch.setenv(name, value)
    assert storage.filesystem("s3://bucket/key")[0].region == region


def test_no_secret_is_in_the_pickle_of_a_filesystem(stack, bucket_uri):
    files, _ = storage.filesystem(bucket_uri)
    assert stack.secret_key.encode() not in pickle.dumps(files)


def public_bucket(keys):
    """A bucket that anybody may list, and read where `keys` match, with one file."""
    bucket = f"public-{uuid.uuid4().hex}"
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket)
    actions = [("s3:ListBucket", f"arn:aws:s3:::{bucket}"), ("s3:GetObject", f"arn:aws:s3:::{bucket}/{keys}")]
    statements = [{"Effect": "Allow", "Principal": "*", "Action": [a], "Resource": [r]} for a, r in actions]
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    s3.put_object(Bucket=bucket, Key="in/a.txt", Body=b"x")
    return bucket


@pytest.mark.parametrize("below", ["", "/in", "/in/", "/in/*.txt", "/in/a.txt"])
def test_a_file_that_is_put_again_is_another_version_only_if_its_content_is(stack, bucket_uri, below):
    def version():
        (found,) = storage.list_files([bucket_uri + below])
        return found.version

    storage.write_bytes(f"{bucket_uri}/in/a.txt", b"x")
    before = version()
    storage.write_bytes(f"{bucket_uri}/in/a.txt", b"x")
    assert version() == before
    storage.write_bytes(f"{bucket_uri}/in/a.txt", b"y")
    assert version() != before


@pytest.mark.parametrize("form", ["uri", "key"])
def test_a_public_bucket_is_listed_without_credentials(stack, monkeypatch, form):
    bucket = public_bucket("*")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")  # so that a signed request would be refused
    if form == "uri":
        found = storage.list_files([f"s3://anonymous@{bucket}/in"])
    else:
        found = storage.list_files([f"s3://{bucket}/in"], anonymous=True)
    assert found == [File(f"{bucket}/in/a.txt", 1, "a.txt", found[0].version)]


def test_a_prefix_is_listed_by_who_may_read_below_it_alone(stack):
    bucket = public_bucket("in/*")
    found = storage.list_files([f"s3://anonymous@{bucket}/in/"])
    assert found == [File(f"{bucket}/in/a.txt", 1, "a.txt", found[0].version)]


def test_a_bucket_that_is_not_public_refuses_an_anonymous_reader(bucket_uri):
    fill(bucket_uri, "a.txt")
    with pytest.raises(JobError, match=r"cannot be listed: .*check the bucket's name, the credentials"):
        storage.list_files([bucket_uri], anonymous=True)


def test_wrong_credentials_are_told_when_looking_up(bucket_uri, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(JobError, match=r"cannot be looked up: .*check the bucket's name, the credentials"):
        storage.children(bucket_uri)


@pytest.fixture
def key_server(stack, monkeypatch, tmp_path):
    """Gives the stack's keys as a container's credentials are given, each time for seven seconds; the times asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            end = datetime.now(UTC) + timedelta(seconds=7)
            keys = {"AccessKeyId": stack.access_key, "SecretAccessKey": stack.secret_key, "Token": ""}
            content = json.dumps(keys | {"Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}/keys")
    yield asked
    server.shutdown()
    server.server_close()


def test_credentials_that_expire_are_fetched_again_by_the_same_store(bucket_uri, key_server):
    first, _ = storage.filesystem(bucket_uri)
    for at in range(3):
        storage.write_bytes(f"{bucket_uri}/{at}", b"x")
        time.sleep(1.3)
    assert storage.filesystem(bucket_uri)[0] is first
    assert len(key_server) >= 2


def test_a_store_is_connected_to_once_until_the_environment_changes(bucket_uri, monkeypatch):
    first, _ = storage.filesystem(f"{bucket_uri}/a")
    assert storage.filesystem(f"{bucket_uri}/b")[0] is first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert storage.filesystem(f"{bucket_uri}/a")[0] is not first


@pytest.mark.parametrize(("hasty", "most_s"), [(True, 20), (False, 600)])
def test_a_hasty_filesystem_gives_up_sooner(monkeypatch, hasty, most_s):
    given = {}
    monkeypatch.setattr(storage.pafs, "S3FileSystem", lambda **options: given.update(options))
    monkeypatch.setattr(storage.pafs, "resolve_s3_region", lambda _bucket: "us-east-1")
    storage._s3.__wrapped__("bucket", (), anonymous=False, hasty=hasty)
    tries = given["retry_strategy"].max_attempts
    assert tries * (given["connect_timeout"] + given["request_timeout"]) <= most_s


@pytest.mark.parametrize("kinds", [("503", "500", "reset"), ("lost answer", "cut put")], ids=["refused", "half done"])
def test_a_write_gets_through_a_store_with_bad_moments(stack, bucket_uri, monkeypatch, kinds):
    proxy = S3Proxy(stack.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    proxy.storm(2, 0.3, kinds)
    for at in range(4):
        storage.write_bytes(f"{bucket_uri}/{at}", b"whole" * 100_000)
    proxy.calm()
    assert set(proxy.done) == set(kinds)
    assert all(storage.read_bytes(f"{bucket_uri}/{at}") == b"whole" * 100_000 for at in range(4))
    proxy.close()


class Tardy:
    """An S3 filesystem whose streams take a while to open."""

    def __init__(self, files):
        self._files = files

    def open_output_stream(self, path, **options):
        stream = self._files.open_output_stream(path, **options)
        time.sleep(0.5)
        return stream


def test_what_a_signal_raises_in_a_write_leaves_no_half_of_an_object(bucket_uri, monkeypatch):
    files, path = storage.filesystem(f"{bucket_uri}/a")
    monkeypatch.setattr(storage, "filesystem", lambda _uri: (Tardy(files), path))

    def end(_number, _frame):
        raise SystemExit

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(SystemExit):
            storage.write_bytes(f"{bucket_uri}/a", b"whole")
    finally:
        signal.signal(signal.SIGALRM, before)
    monkeypatch.undo()
    assert files.open_input_stream(path).read() == b"whole"


def test_the_proxy_of_these_tests_passes_no_half_of_an_object_on():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        proxy = S3Proxy(f"http://127.0.0.1:{server.getsockname()[1]}")
        host, _, port = proxy.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"PUT /bucket/key HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\nhal")
        with pytest.raises(TimeoutError):
            server.accept()
        proxy.close()
