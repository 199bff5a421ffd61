"""A schedule as a line of a crontab.

A cron knows the zone of its machine, and most know no other (Debian's takes `CRON_TZ` for a variable like any). So the
line does not say when the schedule is due: it starts Rayferry at the schedule's minutes of every hour, shifted as any
zone may be, and every few minutes beside; `run --once` knows what is due, in which zone, and whether it was fired.
"""

from rayferry.submit.schedule.definition import Schedule
from rayferry.submit.schedule.export.document import Export, commented
from rayferry.submit.schedule.export.fields import listed, parse
from rayferry.submit.schedule.export.starting import TEND_MINUTES, Starting, environment_file, shell

_PERCENT = r"\%"  # a bare one ends the command
_SHIFT_MINUTES = 15  # all zones are whole quarters of an hour apart


def export(schedule: Schedule, starting: Starting) -> Export:
    """One line, with a comment, for `crontab -e` of a user."""
    due = parse(schedule.cron).minutes
    often = set(range(0, 60, TEND_MINUTES))
    minutes = often | {(minute + shift) % 60 for minute in due for shift in range(0, 60, _SHIFT_MINUTES)}
    field = f"*/{TEND_MINUTES}" if minutes == often else listed(minutes, range(60))
    path = environment_file(schedule, "$HOME")
    command = f'set -a; [ ! -r "{path}" ] || . "{path}"; exec {shell(starting.once)}'
    told = (
        f"Rayferry schedule {schedule.name}: {schedule.cron} ({schedule.timezone})",
        "Looks what is due, in the schedule's own zone, and fires each tick once. One line is enough for all schedules",
        f"of a store. Variables that Rayferry needs, one NAME='value' a line, in quotes: {path}",
    )
    text = f"{commented(told)}{field} * * * * {command.replace('%', _PERCENT)}\n"
    notes = ("put the line into your crontab: crontab -e",)
    return Export({f"rayferry-{schedule.name}.cron": text}, (*notes, *starting.notes(schedule)))
