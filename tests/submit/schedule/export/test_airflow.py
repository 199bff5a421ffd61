"""A DAG's file: Python that makes one DAG, as Airflow's own classes would be called.

Airflow is no part of the tests' environment. What its DagBag makes of such files: docs/schedules-export.md.
"""

import sys
from datetime import datetime
from types import ModuleType, SimpleNamespace
from zoneinfo import ZoneInfo

import jinja2
import pytest

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.export import airflow
from rayferry.submit.schedule.export.starting import Starting

from .conftest import HOSTILE


class Called:
    """What a class was called with."""

    seen = None

    def __init__(self, *arguments, **options):
        type(self).seen = (arguments, options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def load(monkeypatch):
    """Runs a DAG's file with stand-ins for Airflow's classes; gives what they were called with, by their names."""
    places = {
        "airflow.sdk": "DAG",
        "airflow.providers.standard.operators.bash": "BashOperator",
        "airflow.timetables.trigger": "CronTriggerTimetable",
    }
    kinds = {}
    for place, name in places.items():
        kinds[name] = type(name, (Called,), {})
        parts = place.split(".")
        for number in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:number]), ModuleType(".".join(parts[:number])))
        monkeypatch.setattr(sys.modules[place], name, kinds[name], raising=False)
    pendulum = ModuleType("pendulum")
    pendulum.datetime = lambda *numbers, tz: datetime(*numbers, tzinfo=ZoneInfo(tz))
    monkeypatch.setitem(sys.modules, "pendulum", pendulum)

    def run(made):
        ((name, text),) = made.files.items()
        exec(compile(text, name, "exec"), {"__name__": name})
        return {kind: one.seen for kind, one in kinds.items()}

    return run


def rendered(command, run_type, after="2027-01-31T02:00:00+08:00"):
    run = SimpleNamespace(run_type=run_type, run_after=datetime.fromisoformat(after))
    return jinja2.Template(command, undefined=jinja2.StrictUndefined).render(dag_run=run)


def test_it_starts_at_the_ticks_in_the_schedules_zone_from_when_the_schedule_counts(schedule, starting, load):
    made = airflow.export(schedule(name="a.b-C", cron="30 2 * * MON-FRI", timezone="Asia/Shanghai"), starting)
    assert list(made.files) == ["rayferry_a_b_C.py"]
    seen = load(made)
    assert seen["CronTriggerTimetable"] == (("30 2 * * 1-5",), {"timezone": "Asia/Shanghai"})
    options = seen["DAG"][1]
    assert options["dag_id"] == "rayferry-a.b-C"
    assert options["start_date"].isoformat() == "2026-03-01T12:00:00+00:00"


@pytest.mark.parametrize(("catch_up", "catchup"), [("none", False), ("latest", False), ("all", True)])
def test_airflow_makes_up_for_every_tick_if_the_schedule_does(schedule, starting, load, catch_up, catchup):
    assert load(airflow.export(schedule(catch_up=catch_up), starting))["DAG"][1]["catchup"] is catchup


@pytest.mark.parametrize(("overlap", "most"), [("forbid", 1), ("allow", 16), ("replace", 16)])
def test_one_run_at_a_time_where_overlap_is_forbidden(schedule, starting, load, overlap, most):
    assert load(airflow.export(schedule(overlap=overlap), starting))["DAG"][1]["max_active_runs"] == most


@pytest.mark.parametrize(
    ("run_type", "more"),
    [
        ("scheduled", ["--scheduled-time", "2027-01-31T02:00:00+08:00"]),
        ("backfill", ["--scheduled-time", "2027-01-31T02:00:00+08:00"]),
        ("manual", []),
    ],
)
def test_a_run_follows_its_own_tick_and_one_by_hand_the_newest(schedule, load, started, run_type, more):
    _, run = started
    (_, options) = load(airflow.export(schedule(), Starting(HOSTILE)))["BashOperator"]
    words = run(rendered(options["bash_command"], run_type))["words"]
    assert words == ["schedule", "follow", "nightly", "--store", HOSTILE, *more]


def test_secrets_are_airflows_variables_by_name(schedule, load):
    made = airflow.export(schedule(), Starting("s3://b/", set_here=("AWS_SECRET_ACCESS_KEY", "HOME")))
    (_, options) = load(made)["BashOperator"]
    assert (options["env"], options["append_env"]) == (
        {"AWS_SECRET_ACCESS_KEY": "{{ var.value.AWS_SECRET_ACCESS_KEY }}"},
        True,
    )


def test_what_would_be_a_template_of_airflows_is_refused(schedule):
    with pytest.raises(SpecError, match="Airflow would take a part of this for a template"):
        airflow.export(schedule(), Starting("s3://bucket/{{ x }}/"))


def test_a_store_in_a_folder_is_pointed_out(schedule):
    assert "all workers must see the store: /srv/store" in airflow.export(schedule(), Starting("/srv/store")).notes
