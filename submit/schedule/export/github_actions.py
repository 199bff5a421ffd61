"""A schedule as a workflow of GitHub Actions.

Source: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#onschedule
"""

from typing import Any

from rayferry.job import VERSION
from rayferry.job.errors import SpecError
from rayferry.submit import s3
from rayferry.submit.schedule.definition import Schedule
from rayferry.submit.schedule.export.document import Export, commented, to_yaml
from rayferry.submit.schedule.export.fields import parse, plain
from rayferry.submit.schedule.export.starting import Starting, shell

_MOST_MINUTES = 360  # that GitHub lets a job take
_PYTHON = "3.12"
_ALWAYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "RAY_API_SERVER_ADDRESS")


def export(schedule: Schedule, starting: Starting) -> Export:
    """A file for `.github/workflows/`. Its secrets are the repository's, by their names.

    Raises:
        SpecError: the store is a folder, which the machines of GitHub do not see, or the job file is to be tracked.
    """
    if not s3.is_s3(starting.store_uri):
        msg = (
            f"{schedule.name}: GitHub's machines cannot see the store {starting.store_uri}; keep it in S3: "
            "rayferry schedule add --store s3://bucket/schedules/"
        )
        raise SpecError(msg)
    if schedule.track:
        msg = f"{schedule.name}: GitHub's machines cannot see {schedule.job_path}; add the schedule without --track"
        raise SpecError(msg)
    command = shell(starting.follow(schedule))
    if "${{" in command:
        raise SpecError(f"{schedule.name}: GitHub would take a part of this for a template: {command}; rename it")
    secrets = starting.variables(schedule, _ALWAYS)
    steps: list[dict[str, Any]] = [
        {"uses": "actions/setup-python@v6", "with": {"python-version": _PYTHON}},
        {"run": f"pip install rayferry=={VERSION}"},
        {
            "name": "Fire the tick, if nobody did, and follow its run",
            "run": command,
            "env": {name: f"${{{{ secrets.{name} }}}}" for name in secrets},
        },
    ]
    workflow = {
        "name": f"rayferry {schedule.name}",
        "on": {
            "schedule": [{"cron": plain(parse(schedule.cron)), "timezone": schedule.timezone}],
            "workflow_dispatch": {},
        },
        "permissions": {},
        "jobs": {"run": {"runs-on": "ubuntu-latest", "timeout-minutes": _MOST_MINUTES, "steps": steps}},
    }
    told = (f"Rayferry schedule {schedule.name}: {schedule.cron} ({schedule.timezone})",)
    name = f".github/workflows/rayferry-{schedule.name}.yml"
    return Export(
        {name: commented(told) + to_yaml(workflow)},
        (*_notes(schedule, name, secrets), *starting.notes(schedule), *starting.notes_elsewhere(schedule)),
    )


def _notes(schedule: Schedule, name: str, secrets: list[str]) -> list[str]:
    notes = [
        f"commit it to the default branch as {name}; GitHub starts workflows of that branch alone",
        f"secrets of the repository that it uses: {', '.join(secrets)}",
        "GitHub's machines must reach the cluster's dashboard",
        f"a run of more than {_MOST_MINUTES // 60} hours goes on, but nobody follows it",
    ]
    if schedule.catch_up == "none":
        notes.append(
            "GitHub may start a workflow late, or leave a start out: with --catch-up none a tick that is ten minutes "
            "late is passed over; take latest"
        )
    if len(parse(schedule.cron).minutes) > 12:  # noqa: PLR2004  # one each five minutes
        notes.append("GitHub starts no workflow more often than each five minutes")
    return notes
