"""Schedules, a store in a folder and one in S3, and clusters by script."""

from datetime import UTC, datetime

import pytest

from rayferry.job.errors import RayferryError
from rayferry.submit.schedule.book import Book
from rayferry.submit.schedule.definition import make, sha256_of
from rayferry.submit.schedule.runs import Look
from rayferry.submit.schedule.scheduler import Scheduler
from rayferry.submit.schedule.store import open_store

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
JOB = {
    "schema_version": 1,
    "name": "reviews-{{ scheduled_time | date('%Y%m%d') }}",
    "model": "org/model",
    "input": {"uri": "s3://bucket/in/"},
    "output": {"uri": "s3://bucket/out/{{ scheduled_time | date('%Y-%m-%dT%H%M') }}/"},
}


@pytest.fixture
def schedule():
    """Makes schedules: each minute, unless it is said otherwise."""

    def build(**changes):
        job = changes.pop("job", JOB)
        values = {
            "name": "nightly",
            "cron": "* * * * *",
            "job": job,
            "job_sha256": sha256_of(job),
            "created_at": "2026-03-01T12:00:00Z",
            "updated_at": "2026-03-01T12:00:00Z",
            "since": "2026-03-01T12:00:00Z",
        }
        return make(values | changes, "test")

    return build


@pytest.fixture(params=["folder", "s3"])
def each_store(request, tmp_path, bucket_uri):
    """The same store twice: on the disk, and on the real S3 server."""
    return open_store(str(tmp_path / "store") if request.param == "folder" else bucket_uri)


@pytest.fixture
def book(tmp_path):
    return Book(open_store(str(tmp_path / "store")))


class FakeRuns:
    """A cluster by script.

    Attributes:
        jobs: how each attempt stands, by its submission id: a `Look`.
        started: submission ids in the order in which they were started.
        stopped: those that were asked to end.
        trouble: an error for each call of `start` to come.
    """

    def __init__(self):
        self.jobs, self.started, self.stopped, self.trouble = {}, [], [], []

    def place(self, firing, named):
        return {"address": named or "http://head:8265"}

    def start(self, firing):
        if self.trouble:
            raise self.trouble.pop(0)
        if firing.latest_submission_id not in self.jobs:
            self.started.append(firing.latest_submission_id)
            self.jobs[firing.latest_submission_id] = Look("running")
        return "http://head:8265"

    def look(self, firing):
        return self.jobs.get(firing.latest_submission_id, Look("forgotten"))

    def stop(self, firing):
        self.stopped.append(firing.latest_submission_id)
        self.jobs[firing.latest_submission_id] = Look("over", "stopped")

    def end(self, number=-1, state="succeeded", **values):
        """Ends one of those that were started."""
        self.jobs[self.started[number]] = Look("over", state, **values)


@pytest.fixture
def runs():
    return FakeRuns()


@pytest.fixture
def calls():
    """What `on_failure` was called with."""
    return []


@pytest.fixture
def scheduler(book, runs, calls):
    return Scheduler(book, runs, call=lambda hook, firing: calls.append((hook, firing)), owner="one", say=print)


@pytest.fixture
def refusal():
    return RayferryError("the cluster does not answer")
