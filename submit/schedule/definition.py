"""A schedule as a typed value, and what it makes of a scheduled time: a job, and the id of its run."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from rayferry.job import templates
from rayferry.job.errors import SpecError
from rayferry.job.explain import explain
from rayferry.job.spec import Duration, JobSpec, seconds
from rayferry.job.typed import Typed
from rayferry.submit.options import validated
from rayferry.submit.schedule import times

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
UNFIT_FOR_URL = re.compile(r"[\s\x00-\x1f\x7f]")
_YEARS = range(1970, 2200)
_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")


def stamp(moment: datetime) -> str:
    """A time as the store writes it: UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """The way back.

    Raises:
        ValueError: it is none.
    """
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def checked_stamp(text: str) -> str:
    """A time as `stamp` writes it, of an age in which calendars can be counted on.

    Raises:
        ValueError: it is none.
    """
    try:
        found = moment(text)
    except ValueError:
        found = None
    if found is None or stamp(found) != text or found.year not in _YEARS:
        msg = "no time; write it so: 2027-01-31T02:00:00Z"
        raise ValueError(msg)
    return text


Stamp = Annotated[str, AfterValidator(checked_stamp)]


class OnFailure(Typed):
    """What to do about a firing that failed; one of the two."""

    webhook: str | None = Field(None, description="http(s) URL to post to, or env:NAME of the scheduler's environment")
    command: str | None = Field(None, description="shell line, which gets the same JSON on its stdin")

    @model_validator(mode="after")
    def _one(self) -> "OnFailure":
        if (self.webhook is None) == (self.command is None):
            msg = "give a webhook or a command, one of them"
            raise ValueError(msg)
        return self

    @field_validator("webhook")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None or _REFERENCE.fullmatch(value):
            return value
        parts = urlsplit(value)
        _ = parts.port  # raises ValueError if it is none
        if parts.scheme not in {"http", "https"} or not parts.hostname or UNFIT_FOR_URL.search(value):
            msg = "write https://HOST/PATH without blanks, or env:NAME for a URL that is a secret"
            raise ValueError(msg)
        return value


class Schedule(Typed):
    """What is to run, and when.

    Attributes:
        job: the job file's values as they were at `add`, with the templates still in.
        since: from when on ticks count: the schedule was made, its times were changed, or it was unpaused.
    """

    schema_version: Literal[1] = 1
    name: str
    cron: str
    timezone: str = "UTC"
    overlap: Literal["forbid", "allow", "replace"] = "forbid"
    catch_up: Literal["none", "latest", "all"] = "none"
    jitter: Duration | None = None
    paused: bool = False
    job: dict[str, Any]
    job_sha256: str
    job_path: str | None = None
    track: bool = False
    address: str | None = None
    on_failure: OnFailure | None = None
    created_at: Stamp
    updated_at: Stamp
    since: Stamp

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not is_name(value):
            msg = "must be letters, digits, '.', '_' and '-', at most 63, beginning with a letter or a digit"
            raise ValueError(msg)
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        times.zone(value)
        return value

    @field_validator("cron")
    @classmethod
    def _possible(cls, value: str) -> str:
        times.check(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Schedule":
        if self.track and self.job_path is None:
            msg = "track: there is no job_path to follow"
            raise ValueError(msg)
        if self.overlap == "replace" and self.catch_up == "all":
            msg = "overlap replace with catch_up all would start runs only to stop them; take catch_up latest"
            raise ValueError(msg)
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return times.zone(self.timezone)

    @property
    def jitter_s(self) -> float:
        """The most seconds that a run is started late on purpose."""
        return seconds(self.jitter) if self.jitter is not None else 0.0

    def to_json(self) -> dict[str, Any]:
        """As it lies in the store."""
        return self.model_dump(mode="json")


def is_name(text: str) -> bool:
    """True if a schedule may be called so: the name becomes part of keys, ids and files."""
    return _NAME.fullmatch(text) is not None


def make(values: Mapping[str, Any], origin: str) -> Schedule:
    """Validates a schedule; `origin` is where it came from, for the message.

    Raises:
        SpecError: naming origin, key and value.
    """
    try:
        return Schedule.model_validate(dict(values))
    except ValidationError as error:
        lines = explain(error.errors(include_url=False), Schedule)
        raise SpecError("\n".join(f"{origin}: {line}" for line in lines)) from error


def sha256_of(job: Mapping[str, Any]) -> str:
    """Of a job's values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(job, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def render(schedule: Schedule, scheduled_time: datetime) -> JobSpec:
    """The job of one scheduled time: templates in name, input and output URIs filled in.

    Raises:
        SpecError: a template fails, what comes of it is no job, or the job is not the one that was added.
    """
    if sha256_of(schedule.job) != schedule.job_sha256:
        msg = f"schedule {schedule.name}: its job is not the one that was added, by its sha256; add it again"
        raise SpecError(msg)
    return render_job(schedule.job, schedule.name, scheduled_time.astimezone(schedule.zone))


def render_job(job: object, name: str, scheduled_time: datetime) -> JobSpec:
    """The same of a job's values alone; `scheduled_time` in the schedule's zone."""
    return validated(templates.fill(job, name, scheduled_time), f"schedule {name}")


def submission_id(schedule: Schedule, scheduled_time: datetime) -> str:
    """The id of the run's first attempt. The same time of the same schedule has the same id, so Ray refuses a second.

    A schedule of the same name in another store was created at another time, and has other ids.
    """
    which = hashlib.sha256(f"{schedule.name} {schedule.created_at}".encode()).hexdigest()[:6]
    return f"{schedule.name}-{scheduled_time.astimezone(UTC):%Y%m%dT%H%M%SZ}-{which}"
