"""What becomes of a command whose stdout or stderr takes nothing."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

from rayferry.submit import report

COMMAND = str(Path(sysconfig.get_path("scripts")) / "rayferry")


def shell(line, *arguments):
    """Runs a line of a shell, in which "$0" is the command."""
    return subprocess.run(
        ["/bin/bash", "-c", line, COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("closed", ["2>&-", "2> >(exec <&-; sleep 1)", "2>/dev/full", "2>&- <&- >&-"])
def test_a_note_that_cannot_be_written_changes_nothing(tmp_path, closed):
    assert shell(f'sleep 0.1; "$0" init "$1" {closed}', tmp_path / "job.yaml").returncode == 0
    assert (tmp_path / "job.yaml").exists()


@pytest.mark.parametrize("words", ["submit /no/such/job.yaml", "submit --no-such-flag", "submit"])
@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_an_error_that_cannot_be_written_keeps_its_exit_code(words, closed):
    assert shell(f'"$0" {words} {closed}').returncode == 2


def test_a_reader_who_has_enough_changes_nothing():
    done = shell('set -o pipefail; { sleep 0.1; "$0" schema; } | true')
    assert (done.returncode, "Error" in done.stderr) == (0, False)


def test_a_full_disk_under_stdout_is_told(tmp_path):
    done = shell('"$0" schema > /dev/full')
    assert (done.returncode, done.stderr) == (1, "rayferry: error: stdout cannot be written: No space left on device\n")


def test_a_table_is_a_datum_like_others(monkeypatch):
    told = []
    monkeypatch.setattr(report, "datum", told.append)
    report.table(["a"], [["b"]])
    assert len(told) == 1
