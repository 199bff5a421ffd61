"""The scheduler: carries out what `decide` says. Any number of them may work on one store.

A tick belongs to whoever creates its firing. What is done outside of the store comes before the record of it, and may
come twice: a run's submission id is made of the schedule and the tick, so Ray refuses a second; a stop of a run that is
over does nothing; `on_failure` alone may be called twice, if a scheduler dies just after the call.
"""

import secrets
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from rayferry.job.errors import RayferryError, SpecError
from rayferry.job.spec import parse
from rayferry.submit import report, s3
from rayferry.submit.config import NoClusterError
from rayferry.submit.schedule import hooks
from rayferry.submit.schedule.book import Book, CorruptError, Entry
from rayferry.submit.schedule.decide import Advance, Known, Notify, Record, Skip, Stop, Submit, decide
from rayferry.submit.schedule.definition import OnFailure, Schedule, moment, stamp
from rayferry.submit.schedule.firing import claim, hook_of, take_over
from rayferry.submit.schedule.records import BAD, Broken, Firing, Hook, Progress, changed, ended, key_of, tick_of
from rayferry.submit.schedule.runs import Look, Runs, name_of

MAX_TRIES = 5  # submissions of one attempt that fail before the firing is given up
_FIRST_PAUSE_S = 10
_MAX_PAUSE_S = 300
_BEHIND_S = 120
_LEFT_S = 86_400  # for which a command waits for a scheduler that may run it


class Scheduler:
    """One scheduler.

    Args:
        book: the store.
        runs: the clusters.
        call: how `on_failure` is called.
        owner: what it is called in claims.
        own_commands: whether an `on_failure` command of the store may be run here.
        say: takes a line for people.
    """

    def __init__(  # each a part that a test takes the place of
        self,
        book: Book,
        runs: Runs,
        *,
        call: Callable[[OnFailure, Firing], None] = hooks.call,
        owner: str | None = None,
        own_commands: bool = True,
        say: Callable[[str], None] = report.note,
    ) -> None:
        self.book = book
        self._runs = runs
        self._call = call
        self.owner = owner or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._own_commands = own_commands
        self._say = say
        self._settled: dict[tuple[str, datetime], Firing] = {}
        self._told: dict[str, str] = {}
        self._left: set[tuple[str, datetime]] = set()

    def tend(self, name: str, now: datetime) -> int:
        """Does for one schedule what is to be done now; what is wrong with it alone is written down, not raised.

        Returns:
            How many things were done.

        Raises:
            StorageError: the store cannot be used.
        """
        try:
            return self._tend(name, now)
        except CorruptError as error:
            self._tell_once(name, str(error))
            self._mark(name, Broken(at=stamp(now), kind="store", error=str(error)))
        except s3.StorageError:
            raise
        except RayferryError as error:
            self._tell_once(name, str(error))
        return 0

    def _tend(self, name: str, now: datetime) -> int:
        entry = self.book.schedule(name)
        if entry is None:
            return 0
        schedule = entry.value
        progress = self.book.progress(name)
        firings = self._firings(name, tick_of(progress.value.cursor) if progress.value.cursor else None)
        if progress.value.broken and progress.value.broken.kind == "store":
            self._mark(name, None)
            progress = self.book.progress(name)
        self._look_at_clock(progress.value, name, now)
        looks = {tick: self._runs.look(one.value) for tick, one in firings.items() if one.value.state == "submitted"}
        standing = {tick: look.standing for tick, look in looks.items()}
        known = Known(schedule, progress.value, {tick: one.value for tick, one in firings.items()}, standing)
        actions = decide(known, now)
        for action in actions:
            if isinstance(action, Submit):
                self._submit(schedule, action.tick, firings.get(action.tick), now)
            elif isinstance(action, Record):
                self._record(schedule, firings[action.tick], looks[action.tick], now)
            elif isinstance(action, Notify):
                self._notify(schedule, firings[action.tick], now)
            elif isinstance(action, Stop):
                self._stop(firings[action.tick], action.by, now)
            elif isinstance(action, Skip):
                self._skip(schedule, action, now)
            else:
                self._advance(name, action, progress)
        return len(actions)

    def _firings(self, name: str, after: datetime | None) -> dict[datetime, Entry[Firing]]:
        found: dict[datetime, Entry[Firing]] = {}
        for tick in self.book.ticks(name, after):
            if settled := self._settled.get((name, tick)):
                found[tick] = Entry(settled)
                continue
            entry = self.book.firing(name, tick)
            if entry is not None:
                found[tick] = entry
                if entry.value.is_settled:
                    self._settled[name, tick] = entry.value
        for key in [key for key in self._settled if key[0] == name and key[1] not in found]:
            del self._settled[key]
        return found

    def _submit(self, schedule: Schedule, tick: datetime, entry: Entry[Firing] | None, now: datetime) -> None:
        is_new = entry is None
        entry = (
            take_over(self.book, entry, self.owner, now) if entry else claim(self.book, schedule, tick, self.owner, now)
        )
        if entry is None:
            return  # another scheduler's
        if entry.value.state == "refused":
            self._refused(entry.value, now)
            return
        if is_new:
            self._mark(schedule.name, None)
        self.submit(schedule, entry, now)

    def submit(self, schedule: Schedule, entry: Entry[Firing], now: datetime, *, is_patient: bool = True) -> Firing:
        """Starts the run of a firing that is claimed; gives what was written of it. The patient try again."""
        firing = entry.value
        began = time.monotonic()
        try:
            address = self._runs.start(firing)
        except RayferryError as error:
            if isinstance(error, SpecError) and not isinstance(error, NoClusterError):
                after = ended(firing, "refused", now, str(error), on_failure=hook_of(schedule))
                self.book.put_firing(after, entry.tag)
                self._refused(after, now)
                return after
            after = _not_started(firing, str(error), schedule, now)
            if not is_patient:
                after = ended(firing, "refused", now, str(error))
            self._say(f"{firing.schedule} {firing.scheduled_time}: not submitted: {error}")
        else:
            then = now + timedelta(seconds=time.monotonic() - began)
            after = changed(firing, state="submitted", submitted_at=stamp(then), address=address, reason=None)
            self._say(f"{firing.schedule} {firing.scheduled_time}: submitted {name_of(firing)}")
        self.book.put_firing(after, entry.tag)
        return after

    def _refused(self, firing: Firing, now: datetime) -> None:
        reason = firing.reason or ""
        self._say(f"{firing.schedule} {firing.scheduled_time}: no job can be made for it: {reason}")
        self._mark(firing.schedule, Broken(at=stamp(now), kind="job", error=reason))

    def _record(self, schedule: Schedule, entry: Entry[Firing], look: Look, now: datetime) -> None:
        firing = entry.value
        limit = parse(firing.job, firing.schedule).retry.max_attempts
        may_again = (look.again or look.standing == "forgotten") and firing.replaced_by is None
        if may_again and firing.attempt < limit:
            due = now + timedelta(seconds=_pause_s(firing.attempt))
            after = changed(
                firing, state="waiting", attempt=firing.attempt + 1, tries=0, next_at=stamp(due), reason=look.reason
            )
        elif firing.replaced_by is not None:
            after = ended(firing, "stopped", now, f"replaced by {firing.replaced_by}", result=look.result)
        else:
            state = "lost" if look.standing == "forgotten" else look.state
            hook = hook_of(schedule) if state in BAD else None
            after = ended(firing, state, now, look.reason, result=look.result, on_failure=hook)
        if self.book.put_firing(after, entry.tag) is not None:
            why = f": {after.reason}" if after.reason else ""
            self._say(f"{firing.schedule} {firing.scheduled_time}: {after.state}{why}")

    def leaves_call(self, firing: Firing) -> bool:
        """True if all that is left to do about it is a command that only others may run."""
        return firing.is_over and (firing.schedule, firing.tick) in self._left

    def _notify(self, schedule: Schedule, entry: Entry[Firing], now: datetime) -> bool:
        """Calls `on_failure`; False if that was left to another scheduler."""
        firing, before = entry.value, entry.value.on_failure
        if before is None or schedule.on_failure is None:
            return self.book.put_firing(changed(firing, on_failure=None), entry.tag) is not None
        if schedule.on_failure.command is not None and not self._own_commands:
            return self._leave(entry, before, now)
        calling = before.model_copy(update={"state": "calling", "owner": self.owner, "at": stamp(now)})
        ours = self.book.put_firing(changed(firing, on_failure=calling.model_dump()), entry.tag)
        if ours is None:
            return False
        after: dict[str, object] = {"state": "done", "tries": before.tries + 1, "error": None}
        try:
            self._call(schedule.on_failure, firing)
        except RayferryError as error:
            self._say(f"{schedule.name} {firing.scheduled_time}: on_failure: {error}")
            is_last = before.tries + 1 >= MAX_TRIES
            due = None if is_last else stamp(now + timedelta(seconds=_pause_s(before.tries + 1)))
            after |= {"state": "failed" if is_last else "due", "error": str(error), "next_at": due}
        hook = calling.model_copy(update=after)
        return self.book.put_firing(changed(firing, on_failure=hook.model_dump()), ours.tag) is not None

    def _leave(self, entry: Entry[Firing], hook: Hook, now: datetime) -> bool:
        """Leaves a command to a scheduler that may run it, for a day."""
        firing = entry.value
        text = "commands of a shared store are run only by a scheduler with --allow-commands"
        if (firing.schedule, firing.tick) not in self._left:
            self._left.add((firing.schedule, firing.tick))
            self._say(f"{firing.schedule} {firing.scheduled_time}: on_failure: {text}")
        if firing.ended_at is None or (now - moment(firing.ended_at)).total_seconds() <= _LEFT_S:
            return False
        given_up = hook.model_copy(update={"state": "failed", "error": f"{text}, and none came for a day"})
        return self.book.put_firing(changed(firing, on_failure=given_up.model_dump()), entry.tag) is not None

    def _stop(self, entry: Entry[Firing], by: datetime, now: datetime) -> None:
        firing = changed(entry.value, replaced_by=stamp(by))
        if firing.state == "waiting":
            firing = ended(firing, "stopped", now, f"replaced by {firing.replaced_by}")
        else:
            try:
                self._runs.stop(firing)
            except RayferryError as error:
                self._say(f"{firing.schedule} {firing.scheduled_time}: could not be stopped: {error}")
                return
        self.book.put_firing(firing, entry.tag)

    def _skip(self, schedule: Schedule, action: Skip, now: datetime) -> None:
        firing = Firing(schedule=schedule.name, scheduled_time=stamp(action.tick), owner=self.owner)
        if self.book.put_firing(ended(firing, "skipped", now, action.reason), None) is not None:
            self._say(f"{schedule.name} {stamp(action.tick)}: skipped: {action.reason}")

    def _advance(self, name: str, action: Advance, entry: Entry[Progress]) -> None:
        values = {"cursor": key_of(action.cursor), "missed": entry.value.missed + action.missed}
        self.book.put_progress(name, entry.value.model_copy(update=values), entry.tag)
        if action.missed:
            self._say(f"{name}: {action.missed} ticks up to {stamp(action.cursor)} were passed over")

    def _mark(self, name: str, broken: Broken | None) -> None:
        """Writes down that a schedule is broken, and why; or that it is not."""
        try:
            entry = self.book.progress(name)
        except CorruptError:
            return  # `list` finds that out by itself
        before = entry.value.broken
        if (before and (before.kind, before.error)) != (broken and (broken.kind, broken.error)):
            self.book.put_progress(name, entry.value.model_copy(update={"broken": broken}), entry.tag)

    def _look_at_clock(self, progress: Progress, name: str, now: datetime) -> None:
        if progress.cursor and (tick_of(progress.cursor) - now).total_seconds() > _BEHIND_S:
            self._tell_once(name, f"the clock here is behind what was done already ({progress.cursor}); nothing is due")

    def _tell_once(self, name: str, text: str) -> None:
        if self._told.get(name) != text:
            self._told[name] = text
            self._say(f"{name}: {text}")


def _not_started(firing: Firing, reason: str, schedule: Schedule, now: datetime) -> Firing:
    """What becomes of a firing whose submission failed: it is tried again for a while."""
    tries = firing.tries + 1
    if tries >= MAX_TRIES:
        return ended(firing, "refused", now, reason, tries=tries, on_failure=hook_of(schedule))
    due = now + timedelta(seconds=_pause_s(tries))
    return changed(firing, state="waiting", tries=tries, next_at=stamp(due), reason=reason)


def _pause_s(number: int) -> int:
    return int(min(_FIRST_PAUSE_S * 2 ** (number - 1), _MAX_PAUSE_S))
