"""`schedule export`, `schedule follow` and `submit --export`: what they print where, what they write, how they end."""

import json
from datetime import UTC, datetime

import pytest
import yaml
from click.testing import CliRunner

from rayferry.submit import s3
from rayferry.submit.cli import main
from rayferry.submit.schedule import one_tick
from rayferry.submit.schedule.one_tick import Followed
from rayferry.submit.schedule.records import Firing

URI = "s3://bucket/packages/"
JOB = {
    "model": "org/model",
    "input": {"uri": "s3://bucket/in/"},
    "output": {"uri": "s3://bucket/out/{{ scheduled_time | date('%Y-%m-%d') }}/"},
}


@pytest.fixture
def rayferry(tmp_path, monkeypatch):
    """Runs the command with a store of its own that has the schedule `nightly`."""
    monkeypatch.setenv("RAYFERRY_SCHEDULES", str(tmp_path / "store"))

    def run(*words):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    path = tmp_path / "scheduled.yaml"
    path.write_text(yaml.safe_dump(JOB))
    assert run("schedule", "add", "nightly", path, "--cron", "0 2 * * *", "--timezone", "Asia/Shanghai").exit_code == 0
    return run


@pytest.fixture
def objects(monkeypatch):
    """What is put into S3."""
    kept = {}
    monkeypatch.setattr(s3, "write_bytes", kept.__setitem__)
    monkeypatch.setattr(
        s3, "list_keys", lambda uri, _: [(name, len(held)) for name, held in kept.items() if name.startswith(uri)]
    )
    return kept


def export(rayferry, target, *words):
    return rayferry("schedule", "export", "nightly", "--to", target, *words)


@pytest.mark.parametrize("target", ["cron", "airflow", "systemd"])
def test_the_text_goes_to_stdout_and_what_is_left_to_do_to_stderr(rayferry, target):
    result = export(rayferry, target)
    assert result.exit_code == 0
    assert "Rayferry schedule nightly: 0 2 * * * (Asia/Shanghai)" in result.stdout
    assert result.stderr.strip()


def test_several_files_are_told_apart(rayferry):
    heads = [line for line in export(rayferry, "systemd").stdout.splitlines() if line.startswith("# ---")]
    assert heads == ["# --- rayferry-nightly.service", "# --- rayferry-nightly.timer"]


def test_files_are_written_into_a_folder_and_their_paths_printed(rayferry, tmp_path):
    result = export(rayferry, "systemd", "--output", tmp_path / "units" / "new")
    paths = [tmp_path / "units" / "new" / f"rayferry-nightly.{kind}" for kind in ("service", "timer")]
    assert result.stdout.split() == list(map(str, paths))
    assert all("# ---" not in path.read_text() for path in paths)


def test_a_folder_that_cannot_be_written_is_told(rayferry, tmp_path):
    (tmp_path / "file").write_text("")
    result = export(rayferry, "cron", "--output", tmp_path / "file")
    assert (result.exit_code, "rayferry-nightly.cron cannot be written" in result.stderr) == (2, True)


def test_the_store_and_the_program_are_those_that_were_said(rayferry, tmp_path):
    result = export(rayferry, "cron", "--program", "/opt/rayferry")
    assert f"exec /opt/rayferry schedule run --once --store {tmp_path / 'store'}" in result.stdout


def test_a_relative_program_becomes_absolute_for_this_machine_and_is_refused_for_others(
    rayferry, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for target in ("cron", "systemd"):
        assert f"{tmp_path}/bin/rayferry schedule run" in export(rayferry, target, "--program", "bin/rayferry").stdout
    result = export(rayferry, "airflow", "--program", "bin/rayferry")
    assert (result.exit_code, "give an absolute path" in result.stderr) == (2, True)


def test_a_job_that_is_not_the_one_that_was_added_is_not_exported_to_kuberay(rayferry, objects, tmp_path):
    path = tmp_path / "store" / "schedules" / "nightly.json"
    path.write_text(path.read_text().replace("org/model", "org/other"))
    result = export(rayferry, "kuberay", "--package-uri", URI)
    assert (result.exit_code, "not the one that was added" in result.stderr, objects) == (2, True, {})


def test_githubs_machines_do_not_see_a_folder(rayferry):
    result = export(rayferry, "github-actions")
    assert (result.exit_code, "keep it in S3" in result.stderr) == (2, True)


def test_a_schedule_that_is_not_there_is_told_with_those_that_are(rayferry):
    result = rayferry("schedule", "export", "hourly", "--to", "cron")
    assert (result.exit_code, "there: nightly" in result.stderr) == (1, True)


def test_what_is_said_for_kuberay_has_no_meaning_elsewhere(rayferry):
    result = export(rayferry, "cron", "--pod", "cpus=4")
    assert (result.exit_code, "are for --to kuberay, not for cron" in result.stderr) == (2, True)


def test_kuberay_needs_a_place_for_the_package(rayferry):
    result = export(rayferry, "kuberay")
    assert (result.exit_code, "--package-uri: no laptop is there when the job starts" in result.stderr) == (2, True)


def test_the_package_is_put_to_s3_once(rayferry, objects):
    results = [export(rayferry, "kuberay", "--package-uri", URI) for _ in range(2)]
    ((uri, content),) = objects.items()
    assert (
        yaml.safe_load(yaml.safe_load(results[0].stdout)["spec"]["jobTemplate"]["runtimeEnvYAML"])["working_dir"] == uri
    )
    assert f"put there: {uri} ({len(content):,} bytes)" in results[0].stderr
    assert f"there already: {uri}" in results[1].stderr


def test_half_a_package_is_put_there_again(rayferry, objects):
    export(rayferry, "kuberay", "--package-uri", URI)
    ((uri, content),) = list(objects.items())
    objects[uri] = content[:-1]
    export(rayferry, "kuberay", "--package-uri", URI)
    assert objects == {uri: content}


def test_a_dry_run_puts_nothing_to_s3(rayferry, objects):
    result = export(rayferry, "kuberay", "--package-uri", URI, "--dry-run")
    assert (result.exit_code, objects, "not put there: s3://bucket/packages/" in result.stderr) == (0, {}, True)


def test_a_manifest_that_cannot_be_made_leaves_nothing_in_s3(rayferry, objects):
    result = export(rayferry, "kuberay", "--package-uri", URI, "--pod", "memory=lots")
    assert (result.exit_code, objects) == (2, {})


def test_submit_exports_a_ray_job_and_submits_nothing(rayferry, objects, job_file, ray_api):
    words = ("--set", "input.uri=s3://bucket/in/", "--set", "output.uri=s3://bucket/out/", "--address", ray_api.url)
    result = rayferry("submit", job_file, *words, "--export", "kuberay", "--package-uri", URI, "--image", "own:1")
    manifest = yaml.safe_load(result.stdout)
    assert (result.exit_code, manifest["kind"], len(objects), ray_api.jobs) == (0, "RayJob", 1, {})
    assert '"own:1"' in json.dumps(manifest)


@pytest.mark.parametrize("words", [("--image", "own:1"), ("--pod", "cpus=4"), ("--package-uri", URI)])
def test_submit_without_export_takes_nothing_that_says_how(rayferry, job_file, words):
    result = rayferry("submit", job_file, *words)
    assert (result.exit_code, "give --export kuberay, or leave them out" in result.stderr) == (2, True)


def test_submit_with_export_refuses_what_is_about_a_submission(rayferry, job_file):
    result = rayferry("submit", job_file, "--export", "kuberay", "--package-uri", URI, "--overwrite")
    assert (result.exit_code, "--export submits nothing" in result.stderr) == (2, True)


@pytest.fixture
def followed(monkeypatch):
    """Takes the place of the run; gives the ticks that were followed."""
    seen = []

    def follow(scheduler, name, tick):
        seen.append((name, tick.isoformat()))
        return Followed(None, "it is paused")

    monkeypatch.setattr(one_tick, "follow", follow)
    return seen


def ended(state, **values):
    return Followed(Firing(schedule="nightly", scheduled_time="2027-01-30T18:00:00Z", state=state, **values))


@pytest.mark.parametrize(
    ("time", "tick"),
    [
        ("2027-01-31T02:00:00+08:00", "2027-01-30T18:00:00+00:00"),
        ("2027-01-31T17:59:00Z", "2027-01-30T18:00:00+00:00"),
        ("2027-01-31T18:00:00", "2027-01-31T18:00:00+00:00"),
    ],
)
def test_the_newest_tick_not_later_than_a_time_is_followed(rayferry, followed, time, tick):
    assert rayferry("schedule", "follow", "nightly", "--scheduled-time", time).exit_code == 0
    assert followed == [("nightly", tick)]


def test_without_a_time_it_is_the_last_one_of_all(rayferry, followed):
    rayferry("schedule", "follow", "nightly")
    ((_, tick),) = followed
    assert 0 <= (datetime.now(UTC) - datetime.fromisoformat(tick)).total_seconds() < 86_400 + 60


def test_a_time_that_is_none_is_wrong_usage(rayferry):
    result = rayferry("schedule", "follow", "nightly", "--scheduled-time", "soon")
    assert (result.exit_code, "--scheduled-time 'soon': no time" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("end", "code", "stdout", "stderr"),
    [
        (Followed(None, "it is paused"), 0, "", "no run: it is paused"),
        (ended("succeeded", output_uri="s3://b/o/", result={"exit_code": 0}), 0, "s3://b/o/\n", ""),
        (ended("failed", reason="too few", result={"exit_code": 3}), 3, "", "2027-01-30T18:00:00Z: failed: too few"),
    ],
)
def test_it_ends_as_the_run_did(rayferry, monkeypatch, end, code, stdout, stderr):
    monkeypatch.setattr(one_tick, "follow", lambda *_: end)
    result = rayferry("schedule", "follow", "nightly")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (code, stdout, stderr)


def test_json_is_the_firing(rayferry, monkeypatch):
    end = ended("succeeded", output_uri="s3://b/o/", result={"exit_code": 0})
    monkeypatch.setattr(one_tick, "follow", lambda *_: end)
    assert json.loads(rayferry("schedule", "follow", "nightly", "--json").stdout) == end.firing.model_dump(mode="json")
