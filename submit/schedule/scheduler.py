"""The scheduler: carries out what `decide` says. Any number of them may work on one store.

A tick belongs to whoever creates its firing. What is done outside of the store comes before the record of it, and may
come twice: a run's submission id is made of the schedule and the tick, so Ray refuses a second; a stop of a run that is
over does nothing; `on_failure` alone may be called twice, if a scheduler dies just after the call.
"""

import secrets
import socket
from collections.abc import Callable
from datetime import datetime, timedelta

from rayferry.job.errors import RayferryError
from rayferry.submit import report, s3
from rayferry.submit.schedule import hooks
from rayferry.submit.schedule.book import Book, CorruptError, Entry
from rayferry.submit.schedule.decide import (
    Advance,
    Drop,
    Known,
    Notify,
    Record,
    Skip,
    Stop,
    Submit,
    decide,
)
from rayferry.submit.schedule.definition import OnFailure, Schedule, moment, stamp
from rayferry.submit.schedule.firing import claim, take_over
from rayferry.submit.schedule.records import Broken, Firing, Hook, Progress, changed, ended, key_of, tick_of
from rayferry.submit.schedule.runs import Look, Runs
from rayferry.submit.schedule.submitter import MAX_TRIES, Submitter, held_back, let_go, looked_at, pause_s

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

    Attributes:
        unseen: since when it is not known how a run stands, by schedule and tick.
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
        self.submitter = Submitter(runs, say)
        self.unseen: dict[tuple[str, datetime], datetime] = {}
        self._left: set[tuple[str, datetime]] = set()

    def tend(self, name: str, now: datetime) -> int:
        """Does for one schedule what is to be done now; what is wrong with it alone is written down, not raised.

        Returns:
            How many things were done and written down.

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
        for tick, look in looks.items():
            firings[tick] = self._seen(name, tick, firings[tick], look, now)
        standing = {tick: look.standing for tick, look in looks.items()}
        known = Known(schedule, progress.value, {tick: one.value for tick, one in firings.items()}, standing)
        done = 0
        for action in decide(known, now):
            if isinstance(action, Advance):
                done += self._advance(name, action, progress)
            elif isinstance(action, Record):
                done += self._record(schedule, firings[action.tick], looks[action.tick], now)
            else:
                done += self._do(schedule, action, firings.get(action.tick), now)
        return done

    def _do(
        self,
        schedule: Schedule,
        action: Submit | Skip | Notify | Stop | Drop,
        entry: Entry[Firing] | None,
        now: datetime,
    ) -> bool:
        """Does one thing; True if something of it was written down."""
        if isinstance(action, Submit):
            return self._submit(schedule, action.tick, entry, now)
        if isinstance(action, Skip):
            return self._skip(schedule, action, now)
        if entry is None:
            return False
        if isinstance(action, Notify):
            return self._notify(schedule, entry, now)
        if isinstance(action, Stop):
            return self._stop(entry, action.by, now)
        return self._drop(entry, action.reason, now)

    def _seen(self, name: str, tick: datetime, entry: Entry[Firing], look: Look, now: datetime) -> Entry[Firing]:
        """Writes down once that it is not known how a run stands, or that it is known again."""
        firing, after = entry.value, None
        if look.standing != "unknown":
            self.unseen.pop((name, tick), None)
        elif (name, tick) not in self.unseen:
            self.unseen[name, tick] = now
            self._say(
                f"{name} {firing.scheduled_time}: {firing.latest_submission_id}: not known how it stands: {look.reason}"
            )
            after = changed(firing, reason=look.reason) if firing.reason is None else None
        if look.standing == "running" and (firing.reason is not None or firing.submitted_at is None):
            after = changed(firing, reason=None, submitted_at=firing.submitted_at or stamp(now))
        return (self.book.put_firing(after, entry.tag) if after else None) or entry

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

    def _submit(self, schedule: Schedule, tick: datetime, entry: Entry[Firing] | None, now: datetime) -> bool:
        may_run = entry is not None and entry.value.state == "claimed"
        is_first = entry is None or not entry.value.has_begun
        place = self.submitter.place_of(schedule)
        ours = (
            take_over(self.book, entry, self.owner, now, place)
            if entry
            else claim(self.book, schedule, tick, self.owner, now, place=place)
        )
        if ours is None:
            return False  # another scheduler's
        if ours.value.state == "refused":
            self._say(f"{schedule.name} {stamp(tick)}: no job can be made for it: {ours.value.reason}")
            self._mark(schedule.name, Broken(at=stamp(now), kind="job", error=ours.value.reason or ""))
            return True
        if entry is None:
            self._mark(schedule.name, None)
        if is_first and (after := self._judged_again(schedule, ours.value, now)):
            self._say(f"{schedule.name} {stamp(tick)}: {after.state}: {after.reason}")
            self.book.put_firing(after, ours.tag)
            return True
        self.submit(schedule, ours, now, may_run=may_run)
        return True

    def _judged_again(self, schedule: Schedule, firing: Firing, now: datetime) -> Firing | None:
        """What becomes of a claimed firing if things are no longer as they were when it was decided."""
        found = self.book.schedule(schedule.name)
        entry = found.value if found else None
        there: dict[datetime, Entry[Firing]] = {}
        if schedule.overlap != "allow":
            cursor = self.book.progress(schedule.name).value.cursor
            there = self._firings(schedule.name, tick_of(cursor) if cursor else None)
        return held_back(schedule, entry, firing, {tick: one.value for tick, one in there.items()}, now)

    def submit(
        self, schedule: Schedule, entry: Entry[Firing], now: datetime, *, may_run: bool = False, is_patient: bool = True
    ) -> Firing:
        """Starts the run of a firing that is claimed; gives what is written of it. The patient try again."""
        firing = entry.value
        after = self.submitter.start(schedule, firing, now, may_run=may_run, is_patient=is_patient)
        if after.state == "refused" and after.tries == firing.tries and is_patient:
            self._mark(firing.schedule, Broken(at=stamp(now), kind="job", error=after.reason or ""))
        if self.book.put_firing(after, entry.tag) is None:  # it took so long that somebody else took it over
            found = self.book.firing(firing.schedule, firing.tick)
            return found.value if found else after
        return after

    def _drop(self, entry: Entry[Firing], reason: str, now: datetime) -> bool:
        after = let_go(entry.value, reason, now)
        if self.book.put_firing(after, entry.tag) is None:
            return False
        self._say(f"{after.schedule} {after.scheduled_time}: {after.state}: {after.reason}")
        return True

    def _record(self, schedule: Schedule, entry: Entry[Firing], look: Look, now: datetime) -> bool:
        firing = entry.value
        after = looked_at(schedule, firing, look, now)
        if self.book.put_firing(after, entry.tag) is None:
            return False
        why = f": {after.reason}" if after.reason else ""
        self._say(f"{firing.schedule} {firing.scheduled_time}: {after.state}{why}")
        return True

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
            due = None if is_last else stamp(now + timedelta(seconds=pause_s(before.tries + 1)))
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

    def _stop(self, entry: Entry[Firing], by: datetime, now: datetime) -> bool:
        firing = changed(entry.value, replaced_by=stamp(by))
        if firing.state == "waiting":
            firing = ended(firing, "stopped", now, f"replaced by {firing.replaced_by}")
        else:
            try:
                self._runs.stop(firing)
            except RayferryError as error:
                self._say(f"{firing.schedule} {firing.scheduled_time}: could not be stopped: {error}")
                return False
        return self.book.put_firing(firing, entry.tag) is not None

    def _skip(self, schedule: Schedule, action: Skip, now: datetime) -> bool:
        firing = Firing(schedule=schedule.name, scheduled_time=stamp(action.tick), owner=self.owner)
        if self.book.put_firing(ended(firing, "skipped", now, action.reason), None) is None:
            return False
        self._say(f"{schedule.name} {stamp(action.tick)}: skipped: {action.reason}")
        return True

    def _advance(self, name: str, action: Advance, entry: Entry[Progress]) -> bool:
        values = {"cursor": key_of(action.cursor), "missed": entry.value.missed + action.missed}
        if self.book.put_progress(name, entry.value.model_copy(update=values), entry.tag) is None:
            return False
        if action.missed:
            self._say(f"{name}: {action.missed} ticks up to {stamp(action.cursor)} were passed over")
        return True

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
