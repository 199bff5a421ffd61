"""The hostile corpus through the real Jobs API and a real engine: nothing ends the job, nothing vanishes."""

import io
from collections import Counter

import boto3
import pyarrow.parquet as pq
import pytest

from rayferry.submit import collect, s3

from ..job import hostile  # noqa: TID252  # tests are no package that is installed
from .conftest import ENGINE, run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # tests/job/test_hostile.py has the same rows and no engine

ROOT = "s3://rayferry/e2e/hostile/"
# all but the files of many rows that are alike: an engine on two cores takes long over them
MANY = {key for key, count in Counter(row.key for row in hostile.expected()).items() if count > 100}
EXPECTED = [row for row in hostile.expected() if row.key not in MANY]


@pytest.fixture(scope="module")
def done(job_file):
    store = boto3.client("s3")
    for key, content in hostile.files().items():
        if key in MANY:
            continue
        store.put_object(Bucket="rayferry", Key=f"e2e/hostile/in/{key}", Body=content)
    path = job_file(
        "hostile",
        task="chat",
        sampling={"temperature": 0, "max_tokens": 1},
        engine=ENGINE | {"max_num_seqs": 64},
        output={"uri": f"{ROOT}out/", "rows_per_part": 500},
        on_error={"max_error_rate": 0.5},
    )
    store.delete_objects(
        Bucket="rayferry", Delete={"Objects": [{"Key": f"e2e/hostile/in/{at}.jsonl"} for at in range(3)]}
    )
    return run("submit", path)


@pytest.fixture(scope="module")
def rows(done):
    manifest = collect.read_manifest(f"{ROOT}out/")
    found = {"data": {}, "errors": {}}
    names = {"data": ["id"], "errors": ["id", "source_uri", "position", "stage"]}
    for part in manifest["parts"]:
        for row in pq.read_table(io.BytesIO(s3.read_bytes(part["uri"])), columns=names[part["kind"]]).to_pylist():
            assert row["id"] not in found["data"] | found["errors"]
            found[part["kind"]][row["id"]] = row
    return found


def test_the_job_ends_and_says_so(done):
    assert done.returncode in {0, 3}, done.stderr[-3000:]
    assert "Traceback" not in done.stderr


def test_every_row_of_the_corpus_is_answered_or_an_error(done, rows):
    counts = collect.read_manifest(f"{ROOT}out/")["counts"]
    assert counts["total"] == counts["succeeded"] + counts["failed"] == len(EXPECTED)
    assert (len(rows["data"]), len(rows["errors"])) == (counts["succeeded"], counts["failed"])


def test_every_bad_row_is_told_with_its_file_position_and_stage(rows):
    told = {(row["source_uri"], row["position"]): row["stage"] for row in rows["errors"].values()}
    expected = {(f"{ROOT}in/{row.key}", row.position): row.stage for row in EXPECTED if row.stage}
    assert {place: told.get(place) for place in expected} == expected


def test_only_rows_that_an_engine_may_refuse_fail_beside_those(rows):
    expected = {row.id: row for row in EXPECTED}
    further = {name: row for name, row in rows["errors"].items() if expected[name].stage is None}
    refusable = {name for name, row in expected.items() if row.late or len((row.prompt or "").encode()) > 128}
    assert [row for name, row in further.items() if name not in refusable] == []
    assert {row["stage"] for row in further.values()} <= {"template", "tokenize", "length", "engine"}
