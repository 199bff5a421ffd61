"""What the commands of all systems share."""

import pytest
import yaml

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.export import airflow, crontab, github_actions, systemd
from rayferry.submit.schedule.export.document import commented, to_yaml
from rayferry.submit.schedule.export.starting import Starting


@pytest.mark.parametrize("sign", ["\n", "\r", "\0", "\x1b", "\u2028"])
@pytest.mark.parametrize("place", ["--store", "--program"])
def test_a_control_character_would_break_out_of_a_line_and_is_refused(place, sign):
    text = f"/srv/a{sign}* * * * * evil"
    with pytest.raises(SpecError, match=f"{place} .*control character"):
        Starting(text) if place == "--store" else Starting("/srv/store", text)


@pytest.mark.parametrize("system", [airflow, crontab, github_actions, systemd])
def test_a_blank_of_any_kind_in_an_expression_breaks_no_line(schedule, starting, system):
    made = system.export(schedule(cron="0 2 *\n* *"), starting)
    assert all("Rayferry schedule nightly: 0 2 * * * (UTC)" in text for text in made.files.values())
    assert commented(("a\nb",)) == "# a b\n"


@pytest.mark.parametrize("system", [airflow, github_actions])
def test_keys_of_a_session_are_among_the_variables_and_are_told_to_end(schedule, system):
    here = ("AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
    made = system.export(schedule(), Starting("s3://bucket/s/", set_here=here))
    assert all(name in str(made.files) for name in here)
    assert any("such keys end after hours" in note for note in made.notes)


@pytest.mark.parametrize("system", [airflow, github_actions])
@pytest.mark.parametrize(
    ("here", "named", "told"),
    [
        (("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"), True, "what is in the file of RAY_AUTH_TOKEN_PATH here"),
        (("RAY_AUTH_MODE",), False, "add RAY_AUTH_TOKEN there"),
        (("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"), True, None),
    ],
)
def test_a_token_in_a_file_is_a_variable_elsewhere(schedule, system, here, named, told):
    made = system.export(schedule(), Starting("s3://bucket/s/", set_here=here))
    assert ("RAY_AUTH_TOKEN" in "".join(made.files.values())) is named
    notes = [note for note in made.notes if "is set here, but no token" in note or "TOKEN_PATH" in note]
    assert [told in note for note in notes] == [True] * bool(told)


def test_a_text_comes_back_from_yaml_whatever_is_in_it():
    text = "é☃\x85x\u2028y\ufeff\n\tz \\"
    inner = to_yaml({"a": text, "b": "two\nlines\n"})
    assert yaml.safe_load(yaml.safe_load(to_yaml({"inner": inner}))["inner"]) == {"a": text, "b": "two\nlines\n"}


@pytest.mark.parametrize("system", [airflow, github_actions])
@pytest.mark.parametrize("place", ["schedule", "job"])
@pytest.mark.parametrize(
    ("host", "is_told"), [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("head", False)]
)
def test_an_address_of_this_machine_is_pointed_out(schedule, starting, system, place, host, is_told):
    address = f"http://{host}:8265"
    made = schedule()
    if place == "schedule":
        made = schedule(address=address)
    else:
        made = schedule(job=made.job | {"cluster": {"address": address}})
    told = [note for note in system.export(made, starting).notes if f"address {address} is this machine's own" in note]
    assert bool(told) is is_told
