"""`{{ scheduled_time | date('%Y-%m-%d') }}` in a job file's name, input and output URIs."""

import re
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.exceptions import FilterArgumentError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rayferry.job import leaks
from rayferry.job.errors import SpecError

_MARKS = ("{{", "{%", "{#")
_TIME = re.compile(r"\{\{-?\s*scheduled_time\b")
_CODE = re.compile("%[-_0^#]?[aAbBcCdDefFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%]")  # what strftime fills in
_UNITS = ("weeks", "days", "hours", "minutes")


def fill(job: object, name: str, scheduled_time: datetime) -> Any:
    """A job's values with the templates filled in; `input.template`, which is one over columns, stays as it is.

    Args:
        job: the values of a job file.
        name: the schedule's.
        scheduled_time: in the schedule's zone.

    Raises:
        SpecError: a template fails.
    """
    if not isinstance(job, Mapping):
        return job  # the validation says what is wrong with it
    filled = deepcopy(dict(job))
    values = {"scheduled_time": scheduled_time, "schedule": name}
    try:
        _refuse_misplaced(filled)
        for place, key, path in places(filled):
            if isinstance(place[key], str):
                place[key] = _text(place[key], path, values)
    except SpecError as error:
        msg = f"schedule {name}: {error}"
        raise SpecError(msg) from error.__cause__
    return filled


def put_back(job: dict[str, Any], templates: Mapping[str, Any]) -> dict[str, Any]:
    """`job`, which was made of `templates` and is valid, with the templates in it again."""
    kept = deepcopy(dict(templates))
    theirs = {path: place[key] for place, key, path in places(kept)}
    back = deepcopy(job)
    for place, key, path in places(back):
        place[key] = theirs.get(path, place[key])
    return back


def places(job: dict[str, Any]) -> list[tuple[Any, Any, str]]:
    """Where templates may be: a container, the key in it, and its path in words."""
    found: list[tuple[Any, Any, str]] = []
    if "name" in job:
        found.append((job, "name", "name"))
    for part in ("input", "output"):
        inner = job.get(part)
        if not isinstance(inner, dict) or "uri" not in inner:
            continue
        uri = inner["uri"]
        if part == "input" and isinstance(uri, list):
            found += [(uri, index, f"input.uri.{index}") for index in range(len(uri))]
        else:
            found.append((inner, "uri", f"{part}.uri"))
    return found


def _refuse_misplaced(job: Mapping[str, Any]) -> None:
    """No text names the scheduled time where no template is filled in."""
    allowed = {path for _, _, path in places(dict(job))} | {"input.template"}
    waiting: list[tuple[str, Any]] = [(str(key), value) for key, value in job.items()]
    for path, value in waiting:  # it grows
        if isinstance(value, Mapping):
            waiting += [(f"{path}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}.{index}", inner) for index, inner in enumerate(value)]
        elif isinstance(value, str) and path not in allowed and _TIME.search(value):
            msg = f"{path}: {leaks.shown(path, value)}: only name, input.uri and output.uri have templates"
            raise SpecError(msg)


def has_mark(text: str) -> bool:
    """True if Jinja takes a part of it for a template."""
    return any(mark in text for mark in _MARKS)


def _text(text: str, path: str, values: Mapping[str, Any]) -> str:
    if not has_mark(text):
        return text
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.filters |= {"date": _date, "shift": _shift}
    try:
        return environment.from_string(text).render(values)
    except Exception as error:  # a template may fail by whatever Python can
        reason = str(error) if isinstance(error, TemplateError) else "it cannot be filled in"
        msg = (
            f"{path}: {text!r}: {reason}; what can be used: scheduled_time, schedule, and the filters "
            "date('%Y-%m-%d') and shift(days=-1)"
        )
        raise SpecError(msg) from error


def _date(moment: object, form: object = "%Y-%m-%d") -> str:
    if not isinstance(moment, datetime):
        msg = f"date: {moment!r} is no time; write scheduled_time | date"
        raise FilterArgumentError(msg)
    if not isinstance(form, str):
        msg = f"date: {form!r} is no form of a time; write date('%Y-%m-%d')"
        raise FilterArgumentError(msg)
    if "%" in _CODE.sub("", form):
        msg = f"date: {form!r} has a % that stands for nothing; write date('%Y-%m-%d'), and %% for a %"
        raise FilterArgumentError(msg)
    return moment.strftime(form)


def _shift(moment: object, *wrong: object, **by: object) -> datetime:
    """So many `days`, `hours`, `weeks` or `minutes` later, by the zone's clock on the wall."""
    if not isinstance(moment, datetime):
        msg = f"shift: {moment!r} is no time; write scheduled_time | shift(days=-1)"
        raise FilterArgumentError(msg)
    numbers = {unit: number for unit, number in by.items() if isinstance(number, int | float) and unit in _UNITS}
    if wrong or not by or numbers != by:
        msg = f"shift takes {', '.join(_UNITS)}, each with a number, such as shift(days=-1)"
        raise FilterArgumentError(msg)
    try:
        return moment + timedelta(**numbers)
    except (ValueError, OverflowError) as error:
        msg = "shift: no calendar goes that far"
        raise FilterArgumentError(msg) from error
