"""What came of a run is read from its manifest and its parts, never from its logs."""

import os
import subprocess
import sys
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.job.errors import RayferryError
from rayferry.submit import collect, s3
from rayferry.submit.client import JobInfo
from rayferry.submit.s3 import NotThereError, StorageError


@pytest.fixture
def part(tmp_path):
    """Writes a Parquet file under the output folder."""

    def write(name, **columns):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return path

    return write


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out")


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_manifest_is_found_however_the_output_is_spelt(out, write_manifest, slashes):
    manifest = write_manifest(out, "job-1")
    assert collect.read_manifest(out + slashes) == manifest


def test_a_manifest_is_read_from_s3(bucket_uri):
    s3.write_bytes(f"{bucket_uri}/_meta/manifest.json", b'{"schema_version": 1, "counts": {}}')
    assert collect.read_manifest(bucket_uri) == {"schema_version": 1, "counts": {}}


def test_the_run_that_an_output_holds_is_known_by_its_name(bucket_uri, tmp_path):
    assert collect.run_there(bucket_uri) == ""
    s3.write_bytes(f"{bucket_uri}/_meta/run.json", b'{"run": "a", "token": "a/1"}')
    assert collect.run_there(bucket_uri) == "a/1"
    s3.write_bytes(f"{bucket_uri}/_meta/run.json", b'{"run": "a"}')  # of a version that gave no names
    assert collect.run_there(bucket_uri) == "a"
    assert collect.run_there("s3://no-such-bucket/x") is None
    assert collect.run_there(str(tmp_path)) is None  # it may be a path of another machine


def test_a_run_that_is_not_done_has_none(out):
    with pytest.raises(NotThereError, match=r"_meta/manifest\.json: not there"):
        collect.read_manifest(out)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not a manifest of Rayferry"),
        ("{", "not a manifest of Rayferry"),
        ("[]", "not a manifest of Rayferry"),
        ("null", "not a manifest of Rayferry"),
        ("{}", "not a manifest of Rayferry"),
        ('{"schema_version": 2}', "of schema version 2; this Rayferry reads 1: upgrade it"),
    ],
)
def test_what_is_no_manifest_known_here_is_refused(out, tmp_path, content, said):
    (tmp_path / "out" / "_meta").mkdir(parents=True)
    (tmp_path / "out" / "_meta" / "manifest.json").write_text(content)
    with pytest.raises(RayferryError, match=said):
        collect.read_manifest(out)


def test_bytes_that_are_no_text_are_no_manifest(out, tmp_path):
    (tmp_path / "out" / "_meta").mkdir(parents=True)
    (tmp_path / "out" / "_meta" / "manifest.json").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(RayferryError, match="not a manifest of Rayferry"):
        collect.read_manifest(out)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("STOPPED", None, 4),
        ("STOPPED", 143, 4),
        ("FAILED", 1, 1),
        ("FAILED", None, 1),
        ("FAILED", 2, 1),
        ("FAILED", 3, 3),
        ("FAILED", 4, 1),
        ("FAILED", 5, 1),
        ("FAILED", 6, 6),
        ("FAILED", 130, 1),
        ("FAILED", -9, 1),
        ("FAILED", 137, 1),
    ],
)
def test_the_exit_code_follows_from_the_end(status, driver, code):
    assert collect.exit_code(JobInfo("job-1", status, exit_code=driver)) == code


def test_a_preview_shows_the_first_rows(out, part):
    part("data/0.parquet", a=[1, 2, 3])
    assert collect.preview(out, 2).to_pydict() == {"a": [1, 2]}


def test_a_preview_goes_on_in_the_next_part(out, part):
    part("data/0.parquet", a=[1, 2])
    part("data/1.parquet", a=[3, 4])
    assert collect.preview(out, 3).to_pydict() == {"a": [1, 2, 3]}


def test_a_preview_of_fewer_rows_than_asked_shows_all(out, part):
    part("data/0.parquet", a=[1, 2])
    assert collect.preview(out, 100).num_rows == 2


def test_a_preview_of_an_output_shows_answers_and_not_errors(out, part):
    part("errors/0.parquet", a=["error"])
    part("data/0.parquet", a=["answer"])
    assert collect.preview(out, 10).to_pydict() == {"a": ["answer"]}


def test_a_preview_of_the_errors_shows_them(out, part):
    part("errors/0.parquet", a=["error"])
    part("data/0.parquet", a=["answer"])
    assert collect.preview(out + "/errors/", 10).to_pydict() == {"a": ["error"]}


def test_a_preview_of_one_file_shows_it(part):
    path = part("any/x.parquet", a=[1])
    part("any/y.parquet", a=[2])
    assert collect.preview(str(path), 10).to_pydict() == {"a": [1]}


def test_parts_with_other_columns_are_shown_together(out, part):
    part("data/0.parquet", a=[1])
    part("data/1.parquet", a=[2], b=["x"])
    assert collect.preview(out, 10).to_pydict() == {"a": [1, 2], "b": [None, "x"]}


def test_parts_whose_columns_are_of_other_types_are_an_error_in_words(out, part):
    part("data/0.parquet", a=[1])
    part("data/1.parquet", a=["x"])
    with pytest.raises(RayferryError):
        collect.preview(out, 10)


def test_a_file_that_is_not_parquet_is_named(out, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(RayferryError, match=r"0\.parquet"):
        collect.preview(out, 10)


@pytest.mark.parametrize("name", ["a.jsonl", "empty.parquet"])
def test_where_no_rows_are_the_preview_says_so(out, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("")
    with pytest.raises(NotThereError, match="no Parquet files there"):
        collect.preview(out, 10)


def test_a_preview_of_nothing_says_so(out):
    with pytest.raises(NotThereError, match="no Parquet files there"):
        collect.preview(out, 10)


def test_a_preview_of_nothing_at_a_relative_path_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotThereError, match=f"an s3:// URI or an absolute path .* looked for in {tmp_path}"):
        collect.preview("out/", 10)


@pytest.fixture
def parquet():
    """Parquet bytes of one column."""

    def content(*values):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"a": values}), sink)
        return sink.getvalue().to_pybytes()

    return content


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_preview_on_s3_shows_the_answers(bucket_uri, parquet, slash):
    s3.write_bytes(f"{bucket_uri}/out/data/0.parquet", parquet(1, 2))
    assert collect.preview(f"{bucket_uri}/out{slash}", 10).to_pydict() == {"a": [1, 2]}


@pytest.mark.parametrize("form", ["out", "out/", "out/0.parquet"])
def test_a_preview_on_s3_never_shows_a_neighbours_rows(bucket_uri, parquet, form):
    s3.write_bytes(f"{bucket_uri}/out-old/0.parquet", parquet(1))
    s3.write_bytes(f"{bucket_uri}/out/0.parquet.bak/1.parquet", parquet(2))
    s3.write_bytes(f"{bucket_uri}/out/0.parquet", parquet(3))
    assert 1 not in collect.preview(f"{bucket_uri}/{form}", 10).column("a").to_pylist()


def test_a_preview_on_s3_of_nothing_does_not_show_a_neighbour(bucket_uri, parquet):
    s3.write_bytes(f"{bucket_uri}/out-old/0.parquet", parquet(1))
    with pytest.raises(NotThereError):
        collect.preview(f"{bucket_uri}/out", 10)


def test_a_preview_on_s3_reads_what_hive_wrote(bucket_uri, parquet):
    key = s3.split(bucket_uri)[1] + "/day=a#b/part 0.parquet"
    s3.client().put_object(Bucket="rayferry", Key=key, Body=parquet(1))
    assert collect.preview(bucket_uri, 10).to_pydict() == {"a": [1]}


def test_a_preview_without_a_bucket_is_an_error_of_storage(stack):
    bucket = f"none-{uuid.uuid4().hex}"
    with pytest.raises(StorageError, match=bucket):
        collect.preview(f"s3://{bucket}/out", 10)


def test_how_a_failed_run_ended_is_exactly_this(out, write_outcome):
    write_outcome(out, "FAILED", 1, "no GPU")
    assert collect.ended(out) == {
        "submission_id": "job-1",
        "status": "FAILED",
        "exit_code": 1,
        "error": "no GPU",
        "started_at": "2026-01-01T10:00:00Z",
        "ended_at": "2026-01-01T11:00:00Z",
        "output_uri": out + "/",
    }


@pytest.mark.parametrize(("status", "code"), [("FAILED", 1), ("STOPPED", 143), ("TIMED_OUT", 6), ("SUCCEEDED", 0)])
def test_without_a_manifest_the_outcome_tells_how_a_run_ended(out, write_outcome, status, code):
    write_outcome(out, status, code)
    assert collect.ended(out)["status"] == status


@pytest.mark.parametrize(
    ("status", "code", "of", "expected"),
    [
        ("SUCCEEDED", 0, "job-1", "SUCCEEDED"),
        ("FAILED", 3, "job-1", "FAILED"),
        ("RUNNING", None, "job-1", "SUCCEEDED"),
        ("TIMED_OUT", 6, "job-1", "SUCCEEDED"),
        ("FAILED", 3, "job-0", "SUCCEEDED"),
    ],
)
def test_a_manifest_outweighs_an_outcome_but_that_of_too_many_errors(
    out, write_manifest, write_outcome, status, code, of, expected
):
    write_manifest(out, "job-1")
    write_outcome(out, status, code, submission_id=of)
    assert collect.ended(out)["status"] == expected


def test_a_manifest_alone_tells_that_a_run_succeeded(out, write_manifest):
    write_manifest(out, "job-1")
    assert (collect.ended(out)["status"], collect.ended(out)["submission_id"]) == ("SUCCEEDED", "job-1")


def test_where_nothing_is_how_a_run_ended_is_unknown(out):
    with pytest.raises(RayferryError, match="unknown from here: no outcome is there; while the cluster is up"):
        collect.ended(out)


@pytest.mark.parametrize("name", ["driver.log", "progress.json"])
def test_of_a_run_that_has_not_ended_it_is_told_when_it_was_last_heard_of(out, write_outcome, tmp_path, name):
    write_outcome(out, "RUNNING")
    path = tmp_path / "out" / "_meta" / name
    path.write_text("")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    expected = rf"job-1 was running when last heard of; {name} was last written 2023-11-1[345] .*rayferry status job-1"
    with pytest.raises(RayferryError, match=expected):
        collect.ended(out)


def test_an_outcome_of_a_newer_version_is_refused(out, write_outcome, tmp_path):
    write_outcome(out, "FAILED")
    (tmp_path / "out" / "_meta" / "outcome.json").write_text('{"schema_version": 2}')
    with pytest.raises(RayferryError, match="of schema version 2"):
        collect.ended(out)


def test_how_a_run_ended_is_read_from_s3(bucket_uri):
    s3.write_bytes(f"{bucket_uri}/_meta/outcome.json", b'{"schema_version": 1, "status": "STOPPED"}')
    assert collect.ended(bucket_uri)["status"] == "STOPPED"


def test_a_log_is_read_though_it_is_not_utf8_throughout(out, tmp_path):
    (tmp_path / "out" / "_meta").mkdir(parents=True)
    (tmp_path / "out" / "_meta" / "driver.log").write_bytes(b"a\xffb\n")
    assert collect.read_log(out) == "a\N{REPLACEMENT CHARACTER}b\n"


def test_a_log_that_is_not_there_is_said_with_the_command_that_may_have_it(out):
    with pytest.raises(NotThereError, match=r"driver\.log: not there; .* rayferry logs ID"):
        collect.read_log(out)


def test_a_preview_starts_no_thread_that_could_abort_the_process_at_its_end(out, part):
    part(f"{out}/data/0.parquet", a=[1, 2])
    program = """
import os, sys
from rayferry.submit import collect
before = len(os.listdir("/proc/self/task"))
collect.preview(sys.argv[1], 1)
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", program, out], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
