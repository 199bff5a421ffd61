"""The store's objects as typed values.

```text
schedules/NAME.json                    a schedule
firings/NAME/20261129T020000Z.json     what became of one of its ticks
progress/NAME.json                     how far it has come
scheduler.json                         the scheduler that runs on a cluster
```
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from rayferry.job.errors import RayferryError
from rayferry.job.explain import explain
from rayferry.submit.schedule.definition import Schedule
from rayferry.submit.schedule.records import Firing, Progress, key_of, tick_of
from rayferry.submit.schedule.store import Store

M = TypeVar("M", bound=BaseModel)
_SUFFIX = ".json"
REMOTE = "scheduler.json"


class CorruptError(RayferryError):
    """An object of the store cannot be read as what it should be."""


@dataclass(frozen=True)
class Entry(Generic[M]):
    """An object: its value, and the tag by which it may be changed; None if it is not in the store."""

    value: M
    tag: str | None = None


class Book:
    """A store's schedules, firings and progress.

    Every method raises `StorageError` where the store cannot be used, and `CorruptError` where an object is not valid.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def names(self) -> list[str]:
        """The schedules' names, in order; what is no schedule is among them if it lies where one would."""
        found = (key.removeprefix("schedules/") for key in self.store.keys("schedules/"))
        return sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX) and "/" not in name)

    def schedule(self, name: str) -> Entry[Schedule] | None:
        """A schedule; None if there is none of this name."""
        key = f"schedules/{name}{_SUFFIX}"
        entry = self._get(key, Schedule)
        if entry is not None and entry.value.name != name:
            raise CorruptError(self._corrupt(key, f"it is of {entry.value.name!r}, by its name"))
        return entry

    def put_schedule(self, schedule: Schedule, tag: str | None) -> Entry[Schedule] | None:
        """Writes it, if it is still as `tag` says; None if it is not."""
        return self._put(f"schedules/{schedule.name}{_SUFFIX}", schedule, tag)

    def remove_schedule(self, name: str) -> None:
        """Removes it; its history stays."""
        self.store.remove(f"schedules/{name}{_SUFFIX}")
        self.store.remove(f"progress/{name}{_SUFFIX}")

    def progress(self, name: str) -> Entry[Progress]:
        """How far a schedule has come."""
        return self._get(f"progress/{name}{_SUFFIX}", Progress) or Entry(Progress())

    def put_progress(self, name: str, progress: Progress, tag: str | None) -> Entry[Progress] | None:
        """Writes it, if it is still as `tag` says; None if it is not."""
        return self._put(f"progress/{name}{_SUFFIX}", progress, tag)

    def ticks(self, name: str, after: datetime | None = None) -> list[datetime]:
        """The ticks of a schedule that have a firing, in order."""
        prefix = f"firings/{name}/"
        start = f"{prefix}{key_of(after)}{_SUFFIX}" if after else ""
        return [_tick(key, prefix) for key in self.store.keys(prefix, start) if key.endswith(_SUFFIX)]

    def last_firings(self, name: str, num: int) -> tuple[list[Firing], list[CorruptError]]:
        """The last firings, oldest first, and what is wrong with those that cannot be read."""
        prefix = f"firings/{name}/"
        firings: list[Firing] = []
        wrong: list[CorruptError] = []
        for key in [key for key in self.store.keys(prefix) if key.endswith(_SUFFIX)][-num:]:
            try:
                entry = self.firing(name, _tick(key, prefix))
            except CorruptError as error:
                wrong.append(error)
            else:
                firings += [entry.value] if entry is not None else []
        return firings, wrong

    def firing(self, name: str, tick: datetime) -> Entry[Firing] | None:
        """What became of a tick; None if nothing did yet."""
        key = f"firings/{name}/{key_of(tick)}{_SUFFIX}"
        entry = self._get(key, Firing)
        if entry is not None and (entry.value.schedule, entry.value.tick) != (name, tick):
            of = f"{entry.value.schedule!r}, {entry.value.scheduled_time}"
            raise CorruptError(self._corrupt(key, f"it is of {of}, by its values"))
        return entry

    def put_firing(self, firing: Firing, tag: str | None) -> Entry[Firing] | None:
        """Writes it, if it is still as `tag` says; None if it is not: then it is somebody else's."""
        return self._put(f"firings/{firing.schedule}/{key_of(firing.tick)}{_SUFFIX}", firing, tag)

    def remote(self) -> Mapping[str, Any] | None:
        """Of the scheduler on a cluster: `address` and `submission_id`; None if there is none."""
        found = self.store.get(REMOTE)
        if found is None:
            return None
        try:
            value = json.loads(found[0])
            return {name: str(value[name]) for name in ("address", "submission_id")}
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(self._corrupt(REMOTE, "not the record of a scheduler")) from error

    def put_remote(self, address: str, submission_id: str) -> None:
        """Says where the scheduler runs; the last one counts."""
        content = json.dumps({"schema_version": 1, "address": address, "submission_id": submission_id}).encode()
        while True:
            found = self.store.get(REMOTE)
            if self.store.put(REMOTE, content, found[1] if found else None) is not None:
                return

    def _get(self, key: str, kind: type[M]) -> Entry[M] | None:
        found = self.store.get(key)
        if found is None:
            return None
        try:
            value = kind.model_validate_json(found[0])
        except ValidationError as error:
            raise CorruptError(self._corrupt(key, "; ".join(_told(error, kind)))) from error
        return Entry(value, found[1])

    def _put(self, key: str, value: M, tag: str | None) -> Entry[M] | None:
        content = json.dumps(value.model_dump(mode="json"), ensure_ascii=False, indent=1).encode()
        new = self.store.put(key, content, tag)
        return Entry(value, new) if new is not None else None

    def _corrupt(self, key: str, why: str) -> str:
        place = f"{self.store.uri.rstrip('/')}/{key}"
        way_out = "delete it"
        if key.startswith("schedules/"):
            name = key.removeprefix("schedules/").removesuffix(_SUFFIX)
            way_out = f"remove it: rayferry schedule remove {shlex.quote(name)}"
        elif key == REMOTE:
            way_out = "write it anew: rayferry schedule run --on-cluster"
        return f"{place}: not valid: {why}; put it right, or {way_out}"


def _told(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    details = error.errors(include_url=False)
    return ["not JSON"] if details[0]["type"] == "json_invalid" else explain(details, kind)


def _tick(key: str, prefix: str) -> datetime:
    name = key.removeprefix(prefix).removesuffix(_SUFFIX)
    try:
        return tick_of(name)
    except ValueError as error:
        msg = f"{key}: not the name of a firing; delete it"
        raise CorruptError(msg) from error
