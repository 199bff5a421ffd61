"""A workflow that GitHub takes: its own form, its secrets by name, its command as one shell line."""

import re

import pytest
import yaml

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.export import github_actions
from rayferry.submit.schedule.export.starting import Starting

from .conftest import HOSTILE

# Source: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax
TOP = {"name", "on", "permissions", "jobs"}
JOB = {"runs-on", "timeout-minutes", "steps"}
STEP = {"uses", "with", "run", "name", "env"}


def workflow_of(made):
    (text,) = made.files.values()
    return yaml.safe_load(text)


def steps_of(made):
    return workflow_of(made)["jobs"]["run"]["steps"]


def test_it_starts_at_the_ticks_in_the_schedules_zone_and_by_hand(schedule, starting):
    made = github_actions.export(schedule(cron="30 2 * * MON-FRI", timezone="Asia/Shanghai"), starting)
    assert list(made.files) == [".github/workflows/rayferry-nightly.yml"]
    assert workflow_of(made)["on"] == {
        "schedule": [{"cron": "30 2 * * 1-5", "timezone": "Asia/Shanghai"}],
        "workflow_dispatch": {},
    }


def test_an_expression_that_github_cannot_read_becomes_one_with_more_starts(schedule, starting):
    made = github_actions.export(schedule(cron="0 0 LW * *"), starting)
    assert workflow_of(made)["on"]["schedule"][0]["cron"] == "0 0 26-31 * *"


def test_it_has_no_key_that_github_does_not_know(schedule, starting):
    made = workflow_of(github_actions.export(schedule(), starting))
    assert set(made) == TOP
    assert set(made["jobs"]["run"]) == JOB
    assert all(set(step) <= STEP for step in made["jobs"]["run"]["steps"])


def test_the_command_follows_the_tick_whatever_is_in_it(schedule, started):
    _, run = started
    made = github_actions.export(schedule(), Starting("s3://bucket" + HOSTILE))
    words = run(steps_of(made)[-1]["run"])["words"]
    assert words == ["schedule", "follow", "nightly", "--store", "s3://bucket" + HOSTILE]


def test_secrets_are_the_repositorys_by_name(schedule):
    hook = {"webhook": "env:HOOK_URL", "command": None}
    made = github_actions.export(schedule(on_failure=hook), Starting("s3://b/s/", set_here=("RAY_AUTH_TOKEN", "HOME")))
    env = steps_of(made)[-1]["env"]
    assert env == {name: f"${{{{ secrets.{name} }}}}" for name in env}
    assert list(env) == [
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "RAY_API_SERVER_ADDRESS"),
        *("RAY_AUTH_TOKEN", "HOOK_URL"),
    ]


def test_an_address_that_the_schedule_has_is_no_secret(schedule, starting):
    made = github_actions.export(schedule(address="https://head.example"), starting)
    assert "RAY_API_SERVER_ADDRESS" not in steps_of(made)[-1]["env"]


def test_braces_of_githubs_own_are_nowhere_else(schedule, starting):
    (text,) = github_actions.export(schedule(), starting).files.values()
    assert set(re.findall(r"\$\{\{(.*?)\}\}", text)) == {
        f" secrets.{name} " for name in steps_of(github_actions.export(schedule(), starting))[-1]["env"]
    }


@pytest.mark.parametrize("changes", [{}, {"track": True, "job_path": "/home/me/job.yaml"}])
def test_what_githubs_machines_cannot_see_is_refused(schedule, changes):
    store = "s3://bucket/s/" if changes else "/home/me/store"
    with pytest.raises(SpecError, match="GitHub's machines cannot see"):
        github_actions.export(schedule(**changes), Starting(store))


def test_what_would_be_a_template_of_githubs_is_refused(schedule):
    with pytest.raises(SpecError, match="GitHub would take a part of this for a template"):
        github_actions.export(schedule(), Starting("s3://bucket/${{ x }}/"))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"cron": "0 2 * * *"}, "with --catch-up none a tick that is ten minutes late is passed over"),
        ({"cron": "*/2 * * * *"}, "no workflow more often than each five minutes"),
    ],
)
def test_what_github_does_otherwise_is_told(schedule, starting, changes, note):
    assert any(note in one for one in github_actions.export(schedule(**changes), starting).notes)


def test_of_a_schedule_that_catches_up_nothing_is_lost_by_a_late_start(schedule, starting):
    made = github_actions.export(schedule(cron="0 2 * * *", catch_up="latest"), starting)
    assert not any("passed over" in one for one in made.notes)
