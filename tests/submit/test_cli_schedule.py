import json
import signal
import subprocess
import sys

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
    added = rayferry("add", "nightly", dated, *DAILY)
    assert added.exit_code == 0, added.stderr
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


def test_remove_tells_what_becomes_of_firings_that_are_not_over(rayferry, dated, book):
    rayferry("add", "nightly", dated, *DAILY)
    for day, values in enumerate(
        [{"state": "succeeded"}, {"state": "submitted", "attempt": 2}, {"state": "waiting"}], 1
    ):
        time = f"2026-01-0{day}T18:00:00Z"
        submitted = time if values["state"] == "submitted" else None
        firing = Firing(schedule="nightly", scheduled_time=time, submission_id=f"n-{day}", submitted_at=submitted)
        book.put_firing(firing.model_copy(update=values), None)
    removed = rayferry("remove", "nightly")
    assert (removed.exit_code, removed.stdout) == (0, "nightly\n")
    going, unsent = removed.stderr.splitlines()
    assert "2026-01-02T18:00:00Z: n-2-a2 goes on" in going
    assert going.endswith("rayferry status n-2-a2")
    assert "2026-01-03T18:00:00Z: was not submitted yet, and will not be" in unsent


@pytest.mark.parametrize("words", [("list",), ("show", "nightly"), ("history", "nightly")])
def test_what_only_reads_the_store_does_not_wait_for_ray(rayferry, dated, book, words):
    rayferry("add", "nightly", dated, *DAILY)
    firing = Firing(schedule="nightly", scheduled_time="2026-01-01T18:00:00Z", state="failed", reason="the node died")
    book.put_firing(firing, None)
    code = (
        "import sys; from rayferry.submit.cli import main; "
        f"main({['schedule', *words]!r}, standalone_mode=False); sys.exit('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_history_shows_the_others_and_names_what_is_corrupt(rayferry, dated, book):
    rayferry("add", "nightly", dated, *DAILY)
    firing = Firing(schedule="nightly", scheduled_time="2026-01-01T18:00:00Z", state="failed", reason="the node died")
    book.put_firing(firing, None)
    for key in ("20260102T180000Z", "yesterday"):
        book.store.put(f"firings/nightly/{key}.json", b"{", None)
    result = rayferry("history", "nightly", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, [firing.model_dump(mode="json")])
    for key in ("20260102T180000Z", "yesterday"):
        assert f"firings/nightly/{key}.json" in result.stderr


@pytest.mark.parametrize("command", ["pause", "add", "show"])
@pytest.mark.parametrize("name", ["nightly", "odd name"])
def test_a_corrupt_schedule_is_told_how_to_remove(rayferry, dated, book, command, name):
    book.store.put(f"schedules/{name}.json", b"{", None)
    if (command, name) == ("add", "odd name"):
        pytest.skip("add refuses the name")
    result = rayferry(*(("add", name, dated, *DAILY) if command == "add" else (command, name)))
    assert result.exit_code == 1
    assert f"rayferry schedule remove {name}" in result.stderr.replace("'", "")


def test_a_corrupt_record_of_the_scheduler_is_told_in_words(rayferry, dated, book):
    rayferry("add", "nightly", dated, *DAILY)
    book.store.put("scheduler.json", b"{", None)
    listed = rayferry("list")
    assert "scheduler.json: not valid: not the record of a scheduler" in listed.stderr
    assert "scheduler  on" not in listed.stderr
    assert json.loads(rayferry("list", "--json").stdout)["scheduler"]["submission_id"] is None


def test_add_again_tells_what_it_changes_by_options_that_are_not_given(rayferry, dated):
    hook = ("--on-failure-webhook", "https://example.com/secret")
    rayferry("add", "nightly", dated, *DAILY, "--jitter", "5m", "--overlap", "allow", *hook)
    said = rayferry("add", "nightly", dated, *DAILY).stderr
    for line in ("jitter was 5m, and is none now", "overlap was allow, and is forbid now", "on_failure was a webhook"):
        assert line in said
    assert "timezone was" not in said
    assert "secret" not in said


def test_show_has_the_time_at_which_a_run_starts_with_its_jitter(rayferry, dated):
    rayferry("add", "nightly", dated, *DAILY, "--jitter", "5m")
    shown = json.loads(rayferry("show", "nightly", "--next", 9, "--json").stdout)["next"]
    assert all(one["tick"] <= one["start"] <= one["tick"].replace("02:00:00", "02:05:00") for one in shown)
    assert any(one["tick"] < one["start"] for one in shown)
    assert " start " in rayferry("show", "nightly").stdout


def test_json_of_a_scheduler_in_the_foreground_is_wrong_usage(rayferry):
    found = rayferry("run", "--json")
    assert (found.exit_code, "--json is for --once and --on-cluster" in found.stderr) == (2, True)


def test_history_looks_at_nothing_outside_of_the_firings(rayferry, dated, book):
    rayferry("add", "nightly", dated, *DAILY)
    found = rayferry("history", "../schedules")
    assert (found.exit_code, "no schedule '../schedules'" in found.stderr) == (1, True)


def test_add_refuses_an_output_that_is_the_same_where_the_clock_goes_back(rayferry, dated):
    words = ("--cron", "0 * * * *", "--timezone", "America/New_York")
    found = rayferry("add", "hourly", dated, *words)
    assert found.exit_code == 2
    assert f"{dated}: output.uri" in found.stderr
    assert "T01:00:00-04:00 and at" in found.stderr
    dated.write_text(dated.read_text().replace("%H%M", "%H%M%z"))
    assert rayferry("add", "hourly", dated, *words).exit_code == 0


def test_add_names_the_job_file_whose_template_fails(rayferry, dated):
    dated.write_text(dated.read_text().replace("scheduled_time", "[][3]"))
    found = rayferry("add", "nightly", dated, *DAILY)
    assert found.exit_code == 2
    assert f"{dated}: schedule nightly: output.uri: " in found.stderr


def test_add_does_without_ray():
    words = "import sys, rayferry.submit.schedule.adding; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


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
    rest = running.communicate(timeout=200)[1]
    assert (running.returncode, "Ctrl-C ends it" in line, "ended;" in rest) == (0, True, True), (line, rest)


def test_a_store_without_schedules_is_named(rayferry, tmp_path):
    found = rayferry("list", "--store", tmp_path / "mistyped")
    assert (found.exit_code, f"there are no schedules in {tmp_path / 'mistyped'}" in found.stderr) == (0, True)


def test_a_look_at_a_store_without_schedules_says_so(rayferry, tmp_path):
    found = rayferry("run", "--once", "--store", tmp_path / "typo")
    assert (found.exit_code, "there are no schedules in" in found.stderr) == (0, True)


def test_a_jitter_that_is_too_long_is_not_told_of_the_job_file(rayferry, dated):
    found = rayferry("add", "nightly", dated, *DAILY, "--jitter", "24h")
    assert found.stderr.startswith("rayferry: error: schedule nightly: jitter: '24h'")
