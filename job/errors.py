"""The exceptions that a user may meet.

RayferryError            something failed; its text is what the user reads
├── SpecError            the job file or a flag is wrong: exit code 2
├── JobError             the run cannot start or cannot go on: exit code 1
│   ├── TooManyErrorsError   so many rows failed that going on is of no use: exit code 3
│   ├── TornError            tasks tried again brought other rows than before: exit code 75
│   └── NodesError           the nodes that the run had have not come back: exit code 75
├── EngineError          the inference engine could not start, or died: exit code 1
└── UnseenError          a check cannot see it from where it runs; the job may well find it

A row that fails is not an exception: it is a row in `errors/`.
"""

import re
from collections.abc import Iterator

EXIT_PASSING = 75  # of the driver, where `is_passing`; by the name EX_TEMPFAIL of sysexits.h
_MAX_CHARS = 1000
_TROUBLE = 500  # the least status of HTTP by which a server tells that the fault is its own
# What Arrow quotes of a store that does not answer, or has trouble of its own.
STORE_TROUBLE = "NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIME"
_STORE = re.compile(rf"AWS Error ({STORE_TROUBLE}|UNKNOWN \(HTTP status 5\d\d\))")
# Empty exceptions that Ray Data hangs on what it raises, as its cause.
_MARKERS = {"SystemException", "UserCodeException"}


class RayferryError(Exception):
    """Base of all: the message says what failed, the value, and what to do next.

    Attributes:
        exit_code: the process exit code that this failure ends with.
    """

    exit_code = 1


class SpecError(RayferryError):
    """A job file, a flag or a value in them is not valid."""

    exit_code = 2


class JobError(RayferryError):
    """The run could not start, or ended in a state that must not be called success."""


class TooManyErrorsError(JobError):
    """More rows failed than `max_error_rate` allows, whatever becomes of the rest."""

    exit_code = 3


class NodesError(JobError):
    """The nodes that a run had when it began have not come back in time; they may yet."""

    exit_code = EXIT_PASSING


class TornError(JobError):
    """What was written is not each row once, as tasks of a lost node brought other rows when they were tried again.

    The records tell which rows are well, so going on with the run makes it right.
    """

    exit_code = EXIT_PASSING


class EngineError(RayferryError):
    """The inference engine could not start, or stopped working."""


class UnseenError(RayferryError):
    """It cannot be seen from here; the job may well find it.

    Attributes:
        elsewhere: it may be seen from another machine.
    """

    def __init__(self, message: str, *, elsewhere: bool = True) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


def is_passing(error: BaseException, *, is_under_way: bool) -> bool:
    """True if the cluster or the store failed a run, and not what it asked for: another attempt may end well.

    Args:
        error: what ended it.
        is_under_way: it had begun to write; before, a store that does not answer may be one that is not there.
    """
    from ray import exceptions  # noqa: PLC0415  # the laptop reads these errors without Ray

    lost = (
        exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.WorkerCrashedError,
        exceptions.NodeDiedError, exceptions.ObjectLostError,
        exceptions.LocalRayletDiedError, exceptions.RpcError, TornError,
    )  # fmt: skip
    for one in _chain(error):
        if isinstance(one, lost):
            return not getattr(one, "actor_init_failed", False)
        if is_under_way and _is_of_store(one):
            return True
    return False


def _is_of_store(error: BaseException) -> bool:
    """True if a store did not answer, or told of trouble of its own; by name, as the laptop may not have boto3."""
    if isinstance(error, (OSError, RayferryError)) and _STORE.search(str(error)):  # ours quote it
        return True
    answer = getattr(error, "response", None)  # of botocore's ClientError
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status) >= _TROUBLE
    return bool({kind.__name__ for kind in type(error).__mro__} & {"ConnectionError", "HTTPClientError"})


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, those that Ray wraps among them; below one of ours only what the store said."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            if isinstance(one, RayferryError):
                is_stores = isinstance(one.__cause__, OSError) or type(one.__cause__).__module__.startswith("botocore.")
                left += [one.__cause__] if is_stores else []
            else:
                left += [one.__context__, one.__cause__, getattr(one, "cause", None)]


def without_frames(error: BaseException) -> None:
    """Lets go of what the frames hold that an error, and its causes, passed through.

    An error that is kept, by what such a frame holds, would else be freed by Python's collector alone, which a replica
    hardly ever lets look.
    """
    for one in list(_chain(error)):
        one.__traceback__ = None


def root_line(error: BaseException) -> str:
    """The innermost cause of `error`, as one line.

    Ray wraps what a task raised in `RayTaskError` and what killed an actor in
    `ActorDiedError`; the first has the original as its `cause`, the second only
    quotes its traceback, whose last line is the original.
    """
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)  # what a task raised; Ray's wrapper is of its class too
        if not isinstance(inner, BaseException) and not isinstance(error, RayferryError):
            inner = error.__cause__
        if not isinstance(inner, BaseException) or type(inner).__name__ in _MARKERS:
            break
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if name in {"ActorDiedError", "RayActorError", "RayTaskError"}:
        return lines[-1] if lines else name
    text = " ".join(lines)
    text = text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 3] + "..."
    return text if isinstance(error, RayferryError) else f"{name}: {text}".rstrip(": ")
