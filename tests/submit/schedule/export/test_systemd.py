"""A service and a timer: systemd takes them, and the words arrive."""

import re
import shutil
import subprocess

import pytest

from rayferry.submit.schedule.export import systemd
from rayferry.submit.schedule.export.starting import Starting

from .conftest import HOSTILE

KEYS = {
    "Unit": {"Description", "After"},
    "Service": {"Type", "EnvironmentFile", "ExecStart", "TimeoutStartSec"},
    "Timer": {"OnCalendar", "Persistent", "AccuracySec"},
    "Install": {"WantedBy"},
}


def parsed(text):
    """A unit as {section: [(key, value)]}; no line that is not of one is let pass."""
    sections, here = {}, None
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if found := re.fullmatch(r"\[(\w+)\]", line):
            here = sections.setdefault(found[1], [])
            continue
        key, sign, value = line.partition("=")
        assert sign, line
        assert not line.endswith("\\"), line
        here.append((key, value))
    return sections


def units(made):
    return {name.rpartition(".")[2]: parsed(text) for name, text in made.files.items()}


def test_the_timer_starts_the_service_at_the_ticks_and_each_five_minutes(schedule, starting):
    made = systemd.export(schedule(cron="30 2 * * MON-FRI", timezone="Asia/Shanghai"), starting)
    assert list(made.files) == ["rayferry-nightly.service", "rayferry-nightly.timer"]
    timer = units(made)["timer"]["Timer"]
    assert [value for key, value in timer if key == "OnCalendar"] == [
        "Mon..Fri *-*-* 02:30:00 Asia/Shanghai",
        "*:00/5",
    ]


@pytest.mark.parametrize(("catch_up", "persistent"), [("none", "false"), ("latest", "true"), ("all", "true")])
def test_a_start_that_was_missed_is_made_up_for_if_the_schedule_catches_up(schedule, starting, catch_up, persistent):
    timer = dict(units(systemd.export(schedule(catch_up=catch_up), starting))["timer"]["Timer"])
    assert timer["Persistent"] == persistent


def test_no_key_is_there_that_systemd_does_not_know(schedule, starting):
    for sections in units(systemd.export(schedule(), starting)).values():
        for section, settings in sections.items():
            assert {key for key, _ in settings} <= KEYS[section]


def test_variables_come_from_a_file_and_their_values_are_in_no_unit(schedule):
    made = systemd.export(schedule(), Starting("/srv/store", set_here=("AWS_SECRET_ACCESS_KEY",)))
    service = dict(units(made)["service"]["Service"])
    assert service["EnvironmentFile"] == "-%h/.config/rayferry/nightly.env"
    assert "AWS_SECRET_ACCESS_KEY" not in str(made)


def test_what_means_something_to_systemd_is_escaped(schedule):
    service = dict(
        units(systemd.export(schedule(), Starting("/100%/$HOME/a b", "/opt/rayferry")))["service"]["Service"]
    )
    assert service["ExecStart"] == '/opt/rayferry schedule run --once --store "/100%%/$$HOME/a b"'


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", ["nightly", "a.b_c-D.1"])
def test_systemd_finds_nothing_wrong_with_them(schedule, started, tmp_path, name):
    program, _ = started
    made = systemd.export(schedule(name=name, cron="0 6 LW * 1-5", catch_up="all"), Starting(HOSTILE, program))
    for file, text in made.files.items():
        (tmp_path / file).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / file) for file in made.files)],
        check=False,
        capture_output=True,
        text=True,
    )
    ours = [line for line in checked.stderr.splitlines() if "rayferry" in line]
    assert (checked.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_would_find_what_is_wrong(started, tmp_path):
    path = tmp_path / "rayferry-bad.timer"
    path.write_text("[Timer]\nOnCalendar=Mon 25:00\nUnit=rayferry-bad.service\n")
    checked = subprocess.run(["systemd-analyze", "verify", path], check=False, capture_output=True, text=True)
    assert "Failed to parse calendar specification" in checked.stderr
