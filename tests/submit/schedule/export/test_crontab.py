"""A crontab's line: it is one, it starts Rayferry at each tick, and the words arrive."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from rayferry.submit.schedule.export import airflow, crontab, github_actions, systemd
from rayferry.submit.schedule.export.fields import parse
from rayferry.submit.schedule.export.starting import Starting
from rayferry.submit.schedule.times import fire_times

from .conftest import HOSTILE


def line_of(schedule, starting):
    """The minutes, and the command as cron hands it to the shell."""
    (text,) = crontab.export(schedule, starting).files.values()
    (line,) = [one for one in text.splitlines() if not one.startswith("#")]
    minutes, *stars, command = line.split(" ", 5)
    assert stars == ["*"] * 4
    assert not re.search(r"(?<!\\)%", command)
    return minutes, command.replace(r"\%", "%")


@pytest.mark.parametrize(
    ("cron", "minutes"),
    [
        ("0 2 * * *", "*/5"),
        ("*/10 * * * *", "*/5"),
        ("7 2 1 * *", "0,5,7,10,15,20,22,25,30,35,37,40,45,50,52,55"),
        ("* * * * *", "*"),
    ],
)
def test_it_looks_each_five_minutes_and_at_the_minutes_of_the_ticks_as_any_zone_has_them(
    schedule, starting, cron, minutes
):
    assert line_of(schedule(cron=cron), starting)[0] == minutes


@pytest.mark.parametrize(
    "machine", ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/New_York"]
)
@pytest.mark.parametrize("zone", ["Asia/Shanghai", "Australia/Lord_Howe", "Pacific/Chatham", "Europe/Berlin"])
def test_a_machine_of_any_zone_starts_it_at_each_tick(schedule, starting, zone, machine):
    made = schedule(cron="7 2 * * *", timezone=zone)
    minutes, _ = line_of(made, starting)
    starts = parse(f"{minutes} * * * *").minutes
    ticks = list(islice(fire_times(made.cron, made.zone, datetime(2027, 1, 1, tzinfo=UTC)), 400))
    assert {tick.astimezone(ZoneInfo(machine)).minute for tick in ticks} <= starts


def test_the_command_is_what_it_was_made_of_whatever_is_in_it(schedule, started):
    program, run = started
    _, command = line_of(schedule(), Starting(HOSTILE, program))
    assert run(command)["words"] == ["schedule", "run", "--once", "--store", HOSTILE]


def test_variables_come_from_a_file_of_the_user(schedule, started, tmp_path):
    program, run = started
    folder = tmp_path / ".config" / "rayferry"
    folder.mkdir(parents=True)
    (folder / "nightly.env").write_text("RAY_API_SERVER_ADDRESS=http://head:8265\nAWS_REGION='eu-north-1'\n")
    _, command = line_of(schedule(), Starting("/srv/store", program))
    found = run(command)["variables"]
    assert (found["RAY_API_SERVER_ADDRESS"], found["AWS_REGION"]) == ("http://head:8265", "eu-north-1")


def test_a_value_in_quotes_arrives_as_it_is_and_the_file_is_told_to_have_them(schedule, started, tmp_path):
    program, run = started
    (text,) = crontab.export(schedule(), Starting("/srv/store", program)).files.values()
    assert "one NAME='value' a line" in text
    (tmp_path / ".config" / "rayferry").mkdir(parents=True)
    url = "https://host/hook?a=1&b=$HOME"
    (tmp_path / ".config" / "rayferry" / "nightly.env").write_text(f"HOOK_URL='{url}'\n")
    assert run(line_of(schedule(), Starting("/srv/store", program))[1])["variables"]["HOOK_URL"] == url


def test_no_note_names_a_file_that_may_not_have_been_written(schedule, starting):
    made = crontab.export(schedule(), starting)
    assert not [note for note in made.notes for name in made.files if name in note]


def test_no_value_of_a_variable_is_in_it(schedule):
    made = crontab.export(schedule(), Starting("/srv/store", set_here=("AWS_SECRET_ACCESS_KEY",)))
    assert "AWS_SECRET_ACCESS_KEY" not in str(made)


@pytest.mark.parametrize("system", [airflow, crontab, github_actions, systemd])
def test_a_command_on_failure_of_a_shared_store_is_pointed_out(schedule, system):
    made = schedule(on_failure={"command": "true"})
    assert any("--allow-commands" in note for note in system.export(made, Starting("s3://bucket/s/")).notes)


@pytest.mark.skipif(shutil.which("crontab") is None, reason="no cron here")
def test_crontab_takes_it(schedule, tmp_path):
    path = tmp_path / "crontab"
    path.write_text(next(iter(crontab.export(schedule(cron="7 2 * * *"), Starting(HOSTILE)).files.values())))
    checked = subprocess.run(["crontab", "-n", path], check=False, capture_output=True, text=True)
    if "invalid option" in checked.stderr:  # another cron's crontab spells it so
        checked = subprocess.run(["crontab", "-T", path], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked


def test_the_time_of_the_export_does_not_matter(schedule, starting):
    made = schedule(since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert crontab.export(made, starting) == crontab.export(schedule(), starting)
