"""`{{ scheduled_time | date('%Y-%m-%d') }}` in a job file's name, input and output URIs."""

from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rayferry.job.errors import SpecError

_MARKS = ("{{", "{%", "{#")


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
    for place, key, path in _places(filled):
        if isinstance(place[key], str):
            place[key] = _text(place[key], path, values)
    return filled


def put_back(job: dict[str, Any], templates: Mapping[str, Any]) -> dict[str, Any]:
    """`job`, which was made of `templates` and is valid, with the templates in it again."""
    kept = deepcopy(dict(templates))
    theirs = {path: place[key] for place, key, path in _places(kept)}
    back = deepcopy(job)
    for place, key, path in _places(back):
        place[key] = theirs.get(path, place[key])
    return back


def _places(job: dict[str, Any]) -> list[tuple[Any, Any, str]]:
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


def _has_mark(text: str) -> bool:
    return any(mark in text for mark in _MARKS)


def _text(text: str, path: str, values: Mapping[str, Any]) -> str:
    if not _has_mark(text):
        return text
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.filters |= {"date": _date, "shift": _shift}
    try:
        return environment.from_string(text).render(values)
    except (TemplateError, TypeError, ValueError, OverflowError, AttributeError, ArithmeticError) as error:
        msg = (
            f"{path}: {text!r}: {error}; what can be used: scheduled_time, schedule, and the filters "
            "date('%Y-%m-%d') and shift(days=-1)"
        )
        raise SpecError(msg) from error


def _date(moment: datetime, form: str = "%Y-%m-%d") -> str:
    return moment.strftime(form)


def _shift(moment: datetime, **by: float) -> datetime:
    """So many `days`, `hours`, `weeks` or `minutes` later, by the zone's clock on the wall."""
    return moment + timedelta(**by)
