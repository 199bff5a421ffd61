"""The real command against a real head and a real store in S3; jobs are real but for their engine, which is a stub."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from rayferry.submit import s3
from rayferry.submit.client import Cluster
from rayferry.submit.collect import preview
from rayferry.submit.schedule.book import Book
from rayferry.submit.schedule.store import open_store

LAPTOP = Path(__file__).parent.parent / "chaos" / "laptop.py"
NUM_MINUTES = 5


def command(*words):
    return [sys.executable, str(LAPTOP), *map(str, words)]


def run(*words):
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


def datum(*words):
    """What a command that must go well prints."""
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def place(bucket_uri, monkeypatch, tmp_path):
    """A store in S3, three prompts, and a job file for each minute."""
    monkeypatch.setenv("RAYFERRY_SCHEDULES", f"{bucket_uri}/schedules/")
    lines = "".join(json.dumps({"text": f"prompt {number}"}) + "\n" for number in range(3))
    s3.write_bytes(f"{bucket_uri}/in/a.jsonl", lines.encode())
    job = {
        "name": "minutely-{{ scheduled_time | date('%H%M') }}",
        "model": "stub/model",
        "input": {"uri": f"{bucket_uri}/in/"},
        "output": {"uri": f"{bucket_uri}/out/{{{{ scheduled_time | date('%Y-%m-%d/%H%M%S') }}}}/"},
        "resources": {"device": "cpu"},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    return bucket_uri, tmp_path / "job.json"


def until(is_true, seconds):
    end = time.monotonic() + seconds
    while not (found := is_true()):
        assert time.monotonic() < end
        time.sleep(1)
    return found


def states(name):
    return [firing["state"] for firing in json.loads(datum("schedule", "history", name, "--json"))]


@pytest.mark.e2e
def test_a_scheduler_on_the_cluster_fires_ticks_and_follows_what_a_laptop_triggered(stack, place):
    _, job = place
    assert datum("schedule", "add", "nightly", job, "--cron", "0 2 1 1 *") == "nightly"
    submission_id = datum("schedule", "trigger", "nightly")
    assert Cluster(stack.address).info(submission_id).name.startswith("minutely-")

    scheduler = datum("schedule", "run", "--on-cluster")
    again = json.loads(datum("schedule", "run", "--on-cluster", "--json"))
    assert (again["submission_id"], again["started"]) == (scheduler, False)
    assert until(lambda: states("nightly") == ["succeeded"], 400)
    (firing,) = json.loads(datum("schedule", "history", "nightly", "--json"))
    assert firing["submission_id"] == submission_id
    assert firing["result"]["counts"] == {"total": 3, "succeeded": 3, "failed": 0}
    texts = preview(firing["output_uri"], 10).column("generated_text").to_pylist()
    assert sorted(text.replace(" and so on", "") for text in texts) == ["PROMPT 0", "PROMPT 1", "PROMPT 2"]

    # it submits by itself, too: a tick that was due before it came
    datum("schedule", "add", "hourly", job, "--cron", "0 * * * *", "--catch-up", "latest")
    book = Book(open_store(os.environ["RAYFERRY_SCHEDULES"]))
    entry = book.schedule("hourly")
    book.put_schedule(entry.value.model_copy(update={"since": "2026-01-01T00:00:00Z"}), entry.tag)
    until(lambda: states("hourly") == ["submitted"], 120)
    (firing,) = json.loads(datum("schedule", "history", "hourly", "--json"))
    assert firing["scheduled_time"].endswith(":00:00Z")
    assert firing["address"] == stack.address
    datum("stop", firing["submission_id"])
    until(lambda: states("hourly") == ["stopped"], 120)

    assert json.loads(datum("schedule", "list", "--json"))["scheduler"]["status"] == "RUNNING"
    datum("stop", scheduler)
    assert "scheduler" in Cluster(stack.address).logs(scheduler)
    found = json.loads(datum("schedule", "list", "--json"))["scheduler"]
    assert (found["submission_id"], found["status"]) == (scheduler, "STOPPED")
    assert json.loads(datum("schedule", "run", "--on-cluster", "--json"))["started"] is True
    datum("stop", scheduler)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_schedule_of_each_minute_for_five_minutes(stack, place):
    bucket_uri, job = place
    datum("schedule", "add", "minutely", job, "--cron", "* * * * *", "--overlap", "allow", "--catch-up", "all")
    began = datetime.now(UTC)
    scheduler = subprocess.Popen(command("schedule", "run", "--every", 5), stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: len(states("minutely")) >= NUM_MINUTES, 60 * (NUM_MINUTES + 3))
        datum("schedule", "pause", "minutely")
        until(lambda: set(states("minutely")) == {"succeeded"}, 900)
    finally:
        scheduler.send_signal(signal.SIGTERM)
        said = scheduler.communicate(timeout=200)[1]
    assert scheduler.returncode == 0, said
    print(said, datum("schedule", "history", "minutely"), datum("schedule", "list"), sep="\n")

    firings = json.loads(datum("schedule", "history", "minutely", "--json"))
    ticks = [datetime.fromisoformat(firing["scheduled_time"]) for firing in firings]
    assert ticks[0] > began
    assert {(later - tick).total_seconds() for tick, later in pairwise(ticks)} == {60.0}
    assert [firing["output_uri"] for firing in firings] == [
        f"{bucket_uri}/out/{tick:%Y-%m-%d/%H%M%S}/" for tick in ticks
    ]
    assert all(preview(firing["output_uri"], 10).num_rows == 3 for firing in firings)
    late = [datetime.fromisoformat(firing["submitted_at"]) - tick for firing, tick in zip(firings, ticks, strict=True)]
    print("claimed and submitted, seconds after the tick:", [one.total_seconds() for one in late])
    assert os.environ["RAYFERRY_SCHEDULES"] in said
