"""A schedule as a service and a timer of systemd.

Source: https://www.freedesktop.org/software/systemd/man/latest/systemd.timer.html and systemd.syntax.html
"""

import re

from rayferry.submit.schedule.definition import Schedule
from rayferry.submit.schedule.export.document import Export, commented
from rayferry.submit.schedule.export.on_calendar import on_calendar
from rayferry.submit.schedule.export.starting import TEND_MINUTES, Starting, environment_file

_PLAIN = re.compile(r"[A-Za-z0-9_./:=@+,-]+")
_START_TIMEOUT = "15min"  # a package may have to be uploaded


def export(schedule: Schedule, starting: Starting) -> Export:
    """`rayferry-NAME.service` and `rayferry-NAME.timer`, for a user's or the system's manager.

    The timer starts the service at each tick, and every few minutes beside: for retries, for what a change of the clock
    hides, and to write down how runs ended.

    Raises:
        SpecError: systemd cannot say the expression.
    """
    unit = f"rayferry-{schedule.name}"
    told = (f"Rayferry schedule {schedule.name}: {schedule.cron} ({schedule.timezone})",)
    service = [
        ("Unit", [("Description", f"Rayferry schedule {schedule.name}"), ("After", "network-online.target")]),
        (
            "Service",
            [
                ("Type", "oneshot"),
                ("EnvironmentFile", "-" + environment_file(schedule, "%h")),
                ("ExecStart", " ".join(map(_quoted, starting.once))),
                ("TimeoutStartSec", _START_TIMEOUT),
            ],
        ),
    ]
    events = [*on_calendar(schedule.cron, schedule.timezone), f"*:00/{TEND_MINUTES}"]
    timer = [
        ("Unit", [("Description", f"Rayferry schedule {schedule.name}")]),
        (
            "Timer",
            [
                *(("OnCalendar", event) for event in events),
                ("Persistent", "true" if schedule.catch_up != "none" else "false"),
                ("AccuracySec", "1s"),
            ],
        ),
        ("Install", [("WantedBy", "timers.target")]),
    ]
    files = {f"{unit}.service": commented(told) + _unit(service), f"{unit}.timer": commented(told) + _unit(timer)}
    notes = (
        f"for a user: copy both into ~/.config/systemd/user/, then: systemctl --user enable --now {unit}.timer",
        "it runs while nobody is logged in after: loginctl enable-linger",
        f"variables that Rayferry needs, one NAME='value' a line, in quotes: {environment_file(schedule, '~')}",
        *starting.notes(schedule),
    )
    return Export(files, notes)


def _unit(sections: list[tuple[str, list[tuple[str, str]]]]) -> str:
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in settings) for name, settings in sections
    )


def _quoted(word: str) -> str:
    """A word of a command as a unit's file has it, where `%` and `$` mean something."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return word if _PLAIN.fullmatch(word) else f'"{word}"'
