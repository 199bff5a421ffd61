"""A schedule as a DAG of Airflow 3.

Source: https://airflow.apache.org/docs/apache-airflow/stable/authoring-and-scheduling/timetable.html
"""

from rayferry.job import templates
from rayferry.job.errors import SpecError
from rayferry.submit import s3
from rayferry.submit.schedule.definition import Schedule, moment
from rayferry.submit.schedule.export.document import Export, commented
from rayferry.submit.schedule.export.fields import parse, plain
from rayferry.submit.schedule.export.starting import Starting, shell

_MAX_ACTIVE_RUNS = 16  # Airflow's own
_MODULE = """
import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

with DAG(
    dag_id={dag_id},
    schedule=CronTriggerTimetable({cron}, timezone={timezone}),
    start_date=pendulum.datetime({since}, tz="UTC"),
    catchup={catchup},
    max_active_runs={max_active_runs},
    tags=["rayferry"],
):
    # A run that a person starts has no tick of its own: it follows the newest one.
    tick = "{{% if dag_run.run_type != 'manual' %}} --scheduled-time {{{{ dag_run.run_after.isoformat() }}}}"
    BashOperator(
        task_id="run",
        bash_command={command} + tick + "{{% endif %}}",
        env={env},
        append_env=True,
    )
"""


def export(schedule: Schedule, starting: Starting) -> Export:
    """A file for Airflow's folder of DAGs. Each of its runs fires one tick, if nobody did, and follows it to its end.

    Raises:
        SpecError: a path in the command would be taken for a template of Airflow's.
    """
    command = "exec " + shell(starting.follow(schedule))
    if templates.has_mark(command):
        raise SpecError(f"{schedule.name}: Airflow would take a part of this for a template: {command}; rename it")
    names = starting.variables(schedule)
    since = moment(schedule.since)
    text = _MODULE.format(
        dag_id=repr(f"rayferry-{schedule.name}"),
        cron=repr(plain(parse(schedule.cron))),
        timezone=repr(schedule.timezone),
        since=f"{since:%Y}, {since.month}, {since.day}, {since.hour}, {since.minute}, {since.second}",
        catchup=schedule.catch_up == "all",
        max_active_runs=1 if schedule.overlap == "forbid" else _MAX_ACTIVE_RUNS,
        command=repr(command),
        env=repr({name: f"{{{{ var.value.{name} }}}}" for name in names}),
    )
    told = (
        f"Rayferry schedule {schedule.name}: {schedule.cron} ({schedule.timezone})",
        "Rayferry itself sees to overlap, jitter, retries and on_failure, as the schedule says.",
    )
    return Export(
        {f"rayferry_{_module(schedule.name)}.py": commented(told) + text},
        (*_notes(starting, names), *starting.notes(schedule), *starting.notes_elsewhere(schedule)),
    )


def _module(name: str) -> str:
    return "".join(sign if sign.isalnum() else "_" for sign in name)


def _notes(starting: Starting, names: list[str]) -> tuple[str, ...]:
    notes = ["Airflow's workers need rayferry, and the way to the cluster and the store"]
    if names:
        notes.append(f"variables of Airflow that it uses: {', '.join(names)}")
    if not s3.is_s3(starting.store_uri):
        notes.append(f"all workers must see the store: {starting.store_uri}")
    return tuple(notes)
