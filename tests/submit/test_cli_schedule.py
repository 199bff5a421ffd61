import json
import signal

import pytest
import yaml
from click.testing import CliRunner

from rayferry.submit.cli import main
from rayferry.submit.schedule.book import Book
from rayferry.submit.schedule.records import Firing
from rayferry.submit.schedule.store import open_store

DAILY = ("--cron", "0 2 * * *", "--timezone", "Asia/Shanghai")


@pytest.fixture
def rayferry():
    def run(*arguments):
        result = CliRunner().invoke(main, ["schedule", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return run


@pytest.fixture
def dated(job_data, tmp_path):
    """A job file whose output is another one each minute."""
    job_data["output"]["uri"] += "/{{ scheduled_time | date('%Y-%m-%dT%H%M') }}"
    path = tmp_path / "dated.yaml"
    path.write_text(yaml.safe_dump(job_data))
    return path


@pytest.fixture
def book(tmp_path):
    return Book(open_store(str(tmp_path / "state" / "schedules")))


def test_add_prints_the_name_and_tells_the_next_ticks(rayferry, dated, book):
    found = rayferry("add", "nightly", dated, *DAILY)
    assert (found.exit_code, found.stdout) == (0, "nightly\n")
    assert found.stderr.count("T02:00:00+08:00") == 3
    made = book.schedule("nightly").value
    assert (made.cron, made.timezone, made.overlap, made.catch_up) == ("0 2 * * *", "Asia/Shanghai", "forbid", "none")
    assert "{{ scheduled_time" in made.job["output"]["uri"]
    assert made.job_path == str(dated)


def test_add_again_changes_the_schedule_and_keeps_what_it_was(rayferry, dated, book):
    rayferry("add", "nightly", dated, *DAILY)
    rayferry("pause", "nightly")
    before = book.schedule("nightly").value
    rayferry("add", "nightly", dated, *DAILY, "--jitter", "5m")
    after = book.schedule("nightly").value
    assert (after.created_at, after.since, after.paused, after.jitter) == (before.created_at, before.since, True, "5m")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cron", "0 0 30 2 *"), "no such day in these months"),
        (("--cron", "0 2 * *"), "five fields"),
        ((*DAILY, "--timezone", "Mars/Base"), "no such time zone"),
        ((*DAILY, "--jitter", "5"), "not a duration"),
        ((*DAILY, "--jitter", "24h"), "two ticks are 86400 s apart"),
        ((*DAILY, "--address", "head:8265"), "is not the address of a Jobs API"),
        ((*DAILY, "--overlap", "replace", "--catch-up", "all"), "only to stop them"),
        ((*DAILY, "--on-failure-webhook", "http://a/", "--on-failure-command", "true"), "one of them"),
        ((*DAILY, "--store", "s3://B_/x"), "not a bucket name"),
        ((*DAILY, "--store", ""), "is empty"),
    ],
)
def test_add_refuses_what_cannot_be_and_says_why(rayferry, dated, book, words, said):
    found = rayferry("add", "nightly", dated, *words)
    assert found.exit_code == 2
    assert said in found.stderr
    assert book.names() == []


@pytest.mark.parametrize("name", ["a/b", "a b", "../x", "ä"])
def test_add_refuses_a_name_with_odd_characters(rayferry, dated, name):
    found = rayferry("add", name, dated, *DAILY)
    assert found.exit_code == 2
    assert "must be letters, digits" in found.stderr


def test_add_refuses_an_output_that_two_ticks_would_share(rayferry, dated):
    dated.write_text(dated.read_text().replace("T%H%M", ""))
    assert rayferry("add", "nightly", dated, "--cron", "0 2 * * *").exit_code == 0
    found = rayferry("add", "nightly", dated, "--cron", "0 2,3 * * *")
    assert found.exit_code == 2
    assert "a run needs an empty output" in found.stderr


def test_add_refuses_a_job_file_that_is_none(rayferry, dated):
    dated.write_text("model: 3\n")
    found = rayferry("add", "nightly", dated, *DAILY)
    assert found.exit_code == 2
    assert "model: 3: must be text" in found.stderr


def test_a_store_that_cannot_be_written_is_told(rayferry, dated, tmp_path):
    (tmp_path / "file").write_text("")
    found = rayferry("add", "nightly", dated, *DAILY, "--store", tmp_path / "file")
    assert found.exit_code == 1
    assert "cannot be written" in found.stderr


def test_list_show_and_history_tell_of_it(rayferry, dated, book):
    rayferry("add", "nightly", dated, *DAILY)
    firing = Firing(schedule="nightly", scheduled_time="2026-01-01T18:00:00Z", state="failed", reason="the node died")
    book.put_firing(firing, None)
    (row,) = json.loads(rayferry("list", "--json").stdout)["schedules"]
    assert (row["state"], row["last"], row["result"]) == ("active", "2026-01-02T02:00:00+08:00", "failed")
    assert row["next"].endswith("T02:00:00+08:00")
    shown = json.loads(rayferry("show", "nightly", "--next", 5, "--json").stdout)
    assert len(shown["next"]) == 5
    assert len({tick["output"] for tick in shown["next"]}) == 5
    assert "{{" not in json.dumps(shown["next"])
    assert json.loads(rayferry("history", "nightly", "--json").stdout) == [firing.model_dump(mode="json")]
    for words in (("list",), ("show", "nightly"), ("history", "nightly")):
        assert "nightly" in rayferry(*words).stdout or "the node died" in rayferry(*words).stdout


def test_a_corrupt_schedule_is_listed_as_broken_beside_the_others_and_can_be_removed(rayferry, dated, book):
    rayferry("add", "good", dated, *DAILY)
    book.store.put("schedules/bad.json", b"{", None)
    bad, good = json.loads(rayferry("list", "--json").stdout)["schedules"]
    assert (bad["state"], good["state"]) == ("broken", "active")
    assert "schedules/bad.json: not valid: not JSON" in bad["error"]
    assert rayferry("run", "--once").exit_code == 1
    assert rayferry("remove", "bad").exit_code == 0
    assert book.names() == ["good"]


def test_pause_and_unpause(rayferry, dated, book):
    rayferry("add", "nightly", dated, *DAILY)
    assert rayferry("pause", "nightly").stdout == "nightly\n"
    assert json.loads(rayferry("list", "--json").stdout)["schedules"][0]["next"] is None
    assert json.loads(rayferry("unpause", "nightly", "--json").stdout)["paused"] is False


@pytest.mark.parametrize("command", ["show", "pause", "unpause", "remove", "trigger", "history"])
def test_a_schedule_that_is_not_there_is_told_with_those_that_are(rayferry, dated, command):
    rayferry("add", "nightly", dated, *DAILY)
    found = rayferry(command, "nihgtly")
    assert found.exit_code == 1
    assert "no schedule 'nihgtly'" in found.stderr
    assert "there: nightly" in found.stderr


def test_trigger_submits_now_and_run_once_writes_down_what_came_of_it(
    rayferry, dated, ray_api, book, write_manifest, monkeypatch
):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_api.url)
    ray_api.statuses = ["RUNNING"]
    rayferry("add", "nightly", dated, *DAILY)
    found = rayferry("trigger", "nightly")
    assert found.exit_code == 0, found.stderr
    name = found.stdout.strip()
    assert list(ray_api.jobs) == [name]
    assert rayferry("run", "--once").exit_code == 0
    (firing,) = json.loads(rayferry("history", "nightly", "--json").stdout)
    assert (firing["state"], firing["trigger"], firing["submission_id"]) == ("submitted", "manual", name)
    write_manifest(firing["output_uri"], name)
    ray_api.statuses = ["SUCCEEDED"]
    assert rayferry("run", "--once").exit_code == 0
    (firing,) = json.loads(rayferry("history", "nightly", "--json").stdout)
    assert (firing["state"], firing["result"]["counts"]["succeeded"]) == ("succeeded", 2)


def test_trigger_tells_why_nothing_was_submitted(rayferry, dated):
    rayferry("add", "nightly", dated, *DAILY)
    found = rayferry("trigger", "nightly")
    assert found.exit_code == 1
    assert "not submitted: no cluster" in found.stderr


def test_once_and_on_cluster_do_not_go_together(rayferry):
    assert rayferry("run", "--once", "--on-cluster").exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_in_the_foreground_ends_well(process, number):
    running = process("schedule", "run")
    line = running.stderr.readline()
    running.send_signal(number)
    rest = running.communicate(timeout=30)[1]
    assert (running.returncode, "Ctrl-C ends it" in line, "ended;" in rest) == (0, True, True), (line, rest)
