"""What the store keeps beside schedules: a firing for each tick that was decided, and how far a schedule has come."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import field_validator

from rayferry.job.earlier import attempt_id
from rayferry.job.typed import Typed
from rayferry.submit.schedule.definition import Stamp, checked_stamp, moment, stamp

CLAIM_TTL_S = 120.0  # after which a claim whose owner did not go on may be taken over
OVER = frozenset({"succeeded", "failed", "stopped", "lost", "refused", "skipped"})
BAD = frozenset({"failed", "lost", "refused"})
_KEY = "%Y%m%dT%H%M%SZ"


class Hook(Typed):
    """The call that a failed firing's `on_failure` asks for."""

    state: Literal["due", "calling", "done", "failed"] = "due"
    tries: int = 0
    owner: str | None = None
    at: Stamp | None = None
    next_at: Stamp | None = None
    error: str | None = None


class Firing(Typed):
    """One tick of a schedule, and the run that came of it.

    Attributes:
        scheduled_time: the tick, before any jitter.
        state: `claimed` by a scheduler that submits it; `submitted`; `waiting` until an attempt may be sent (again);
            or how it ended, see `OVER`.
        submission_id: of the run's first attempt.
        run: the run's name; see `rayferry.job.earlier.new_run`.
        attempt: the last one.
        tries: how often the submission of this attempt was refused.
        owner: the scheduler that claimed it last.
        submitted_at: of its last attempt; None while it is not sure that the cluster got it.
        address: of its cluster, from before the submission on: it may run there and nowhere else.
        session: the cluster's own word for itself, by which it is known under another address.
        seen_from: where alone `address` means that cluster, if it is one of this machine or of a tunnel.
        job: the job that was made for this time, as all of its attempts use it.
        reason: why it is in this state, in words.
        replaced_by: the tick that stopped it.
        result: as `rayferry submit --json` gives it.
    """

    schema_version: Literal[1] = 1
    schedule: str
    scheduled_time: Stamp
    trigger: Literal["schedule", "manual"] = "schedule"
    state: Literal[
        "claimed", "submitted", "waiting", "succeeded", "failed", "stopped", "lost", "refused", "skipped"
    ] = "claimed"
    submission_id: str | None = None
    run: str | None = None
    attempt: int = 1
    tries: int = 0
    owner: str | None = None
    claimed_at: Stamp | None = None
    next_at: Stamp | None = None
    submitted_at: Stamp | None = None
    ended_at: Stamp | None = None
    address: str | None = None
    session: str | None = None
    seen_from: str | None = None
    output_uri: str | None = None
    job: dict[str, Any] | None = None
    reason: str | None = None
    replaced_by: Stamp | None = None
    result: dict[str, Any] | None = None
    on_failure: Hook | None = None

    @property
    def tick(self) -> datetime:
        """The scheduled time."""
        return moment(self.scheduled_time)

    @property
    def latest_submission_id(self) -> str:
        """The submission id of its last attempt, "" if it has none."""
        return attempt_id(self.submission_id or "", self.attempt)

    @property
    def has_begun(self) -> bool:
        """True if it was submitted, or may have been."""
        return self.attempt > 1 or self.state in {"submitted", "claimed"}

    @property
    def is_over(self) -> bool:
        """True once nothing of the run changes any more."""
        return self.state in OVER

    @property
    def is_settled(self) -> bool:
        """True once a scheduler has nothing left to do about it."""
        return self.is_over and (self.on_failure is None or self.on_failure.state in {"done", "failed"})

    def may_be_taken(self, now: datetime) -> bool:
        """True if its claim has expired."""
        return self.state == "claimed" and _expired(self.claimed_at, now)

    def hook_is_due(self, now: datetime) -> bool:
        """True if its `on_failure` is to be called now."""
        hook = self.on_failure
        if hook is None:
            return False
        if hook.state == "due":
            return hook.next_at is None or moment(hook.next_at) <= now
        return hook.state == "calling" and _expired(hook.at, now)


def _expired(since: str | None, now: datetime) -> bool:
    return since is None or (now - moment(since)).total_seconds() > CLAIM_TTL_S


class Broken(Typed):
    """Why a schedule cannot fire: an object of the store is not valid, or no job came of its last tick."""

    at: Stamp
    kind: Literal["store", "job"]
    error: str


class Progress(Typed):
    """How far a schedule has come.

    Attributes:
        cursor: all ticks up to this one are settled; "" before the first.
        missed: ticks that were passed over without a run, so far.
        broken: what is wrong with it, or None.
    """

    schema_version: Literal[1] = 1
    cursor: str = ""
    missed: int = 0
    broken: Broken | None = None

    @field_validator("cursor")
    @classmethod
    def _tick_or_none(cls, value: str) -> str:
        if value:
            checked_stamp(stamp(tick_of(value)))
        return value


def key_of(tick: datetime) -> str:
    """A tick as part of an object's key; their order is the ticks'."""
    return tick.astimezone(UTC).strftime(_KEY)


def tick_of(key: str) -> datetime:
    """The way back.

    Raises:
        ValueError: it is none.
    """
    found = datetime.strptime(key, _KEY).replace(tzinfo=UTC)
    if key_of(found) != key:
        msg = f"{key!r}: no time; write it so: {key_of(found)}"
        raise ValueError(msg)
    return found


def ended(firing: Firing, state: str, now: datetime, reason: str | None, **values: Any) -> Firing:
    """A firing that has come to its end; `on_failure` among the values is a `Hook` that is to be called."""
    return changed(firing, state=state, ended_at=stamp(now), next_at=None, reason=reason, **values)


def changed(firing: Firing, **values: Any) -> Firing:
    """The same firing with other values, validated."""
    return Firing.model_validate(firing.model_dump() | values)
