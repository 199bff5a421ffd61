"""What people see: the datum on stdout, all else on stderr."""

import json
import time

import pytest

from rayferry.submit import report


def test_a_note_goes_to_stderr(capsys):
    report.note("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_datum_goes_to_stdout(capsys):
    report.datum("s3://bucket/out/")
    assert capsys.readouterr() == ("s3://bucket/out/\n", "")


def test_json_keeps_letters_of_every_alphabet(capsys):
    report.json_datum({"a": "é 日本"})
    assert capsys.readouterr().out == '{\n  "a": "é 日本"\n}\n'


def test_json_takes_values_that_json_does_not_know(capsys):
    report.json_datum([b"x", {1}])
    assert json.loads(capsys.readouterr().out) == ["b'x'", "{1}"]


@pytest.mark.parametrize("cell", ["[bold]x[/bold]", "[/]", "[link=x]", ":smile:"])
def test_a_cell_is_never_read_as_markup(capsys, cell):
    report.table(["a"], [[cell]])
    assert cell in capsys.readouterr().out


def test_a_table_shows_nothing_for_none(capsys):
    report.table(["a", "b"], [[None, "x"]])
    assert "None" not in capsys.readouterr().out


def test_a_long_cell_is_cut(capsys):
    report.table(["a"], [["x" * 10_000]])
    assert capsys.readouterr().out.count("x") == 300


def test_a_table_beside_a_datum_goes_to_stderr(capsys):
    report.table(["a"], [["x"]], to_stderr=True)
    assert capsys.readouterr().out == ""


def test_a_run_in_one_line():
    manifest = {
        "counts": {"total": 12_345, "succeeded": 12_340, "failed": 5},
        "tokens": {"input": 1, "generated": 1_000_000},
        "seconds": {"total": 3661.4},
        "parts": [{"kind": "data"}, {"kind": "data"}, {"kind": "errors"}],
    }
    said = "12,345 rows: 12,340 answered in 2 parts, 5 failed; 1,000,000 tokens generated, 3,661 s"
    assert report.summary(manifest) == said


@pytest.mark.parametrize("milliseconds", [None, 0])
def test_no_time_is_shown_as_nothing(milliseconds):
    assert report.clock(milliseconds) == ""


def test_a_time_is_shown_in_this_machines_zone(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert report.clock(1_700_000_000_000) == "2023-11-15 07:13:20"
    finally:
        monkeypatch.undo()
        time.tzset()
