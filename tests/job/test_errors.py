import errno

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from ray.data.exceptions import SystemException
from ray.exceptions import ActorDiedError, GetTimeoutError, NodeDiedError, RayTaskError

from rayferry.job.errors import (
    EngineError,
    JobError,
    NodesError,
    RayferryError,
    SpecError,
    TornError,
    is_passing,
    root_line,
)


def caused(error, cause):
    error.__cause__ = cause
    return error


def from_task(error):
    """`error` as `ray.get` raises it: an exception that is both Ray's and the original's class."""
    return RayTaskError("read", f"Traceback:\n  File 'x', line 1\n{error!r}", error).as_instanceof_cause()


def died_of(error):
    """The exception of an actor whose constructor raised `error`."""
    return ActorDiedError(RayTaskError("__init__", f"Traceback:\n  File 'x', line 1\n{error!r}", error))


@pytest.mark.parametrize(
    ("kind", "code"),
    [(RayferryError, 1), (SpecError, 2), (JobError, 1), (EngineError, 1), (NodesError, 75), (TornError, 75)],
)
def test_each_exception_has_its_exit_code(kind, code):
    assert kind("x").exit_code == code


@pytest.mark.parametrize("kind", [SpecError, JobError, EngineError])
def test_every_exception_is_a_rayferry_error(kind):
    assert issubclass(kind, RayferryError)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (JobError("the bucket\n  is empty"), "the bucket is empty"),
        (ValueError("no such key"), "ValueError: no such key"),
        (ValueError(""), "ValueError"),
        (caused(RuntimeError("outer"), ValueError("inner")), "ValueError: inner"),
        (caused(RuntimeError("a"), caused(RuntimeError("b"), OSError("c"))), "OSError: c"),
        (from_task(ValueError("bad")), "ValueError: bad"),
        (from_task(EngineError("the engine died: out of memory")), "the engine died: out of memory"),
        (caused(from_task(JobError("no input")), SystemException()), "no input"),
        (died_of(ValueError("no weights")), "ValueError('no weights')"),
    ],
)
def test_root_line_is_the_innermost_reason(error, line):
    assert root_line(error) == line


@pytest.mark.parametrize("error", [died_of(OSError("no weights")), OSError("no weights")])
def test_root_line_passes_over_the_empty_marker_that_ray_data_hangs_on_what_it_raises(error):
    assert "no weights" in root_line(caused(error, SystemException()))


def test_root_line_ends_on_a_ring_of_causes():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert root_line(first) in {"ValueError: first", "ValueError: second"}


def test_root_line_is_one_line():
    assert "\n" not in root_line(ValueError("one\n\ntwo\nthree"))


def client_error(code, status):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")


SLOW_DOWN = OSError("When writing: AWS Error SLOW_DOWN during PutObject operation: try less often")
DENIED = OSError("When reading: AWS Error ACCESS_DENIED during HeadObject operation")
AWAY = OSError(errno.EIO, "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7")
RESET = ConnectionResetError("reset by peer")


@pytest.mark.parametrize(
    ("error", "before", "under_way"),
    [
        (ActorDiedError(), True, True),
        (NodeDiedError("lost"), True, True),
        (from_task(ActorDiedError()), True, True),
        (caused(RuntimeError("x"), from_task(ActorDiedError())), True, True),
        (died_of(ValueError("no such model")), False, False),
        (TornError("rows answered twice"), True, True),
        (from_task(TornError("of other rows")), True, True),
        (caused(JobError("rows lost"), ActorDiedError()), False, False),
        (from_task(JobError("rows lost")), False, False),
        (SLOW_DOWN, False, True),
        (RESET, False, True),
        (from_task(AWAY), False, True),
        (caused(JobError("s3://b: cannot be read"), AWAY), False, True),
        (from_task(JobError(f"s3://b: cannot be read: {AWAY}; check the endpoint")), False, True),
        (caused(JobError("s3://b: cannot be read"), DENIED), False, False),
        (caused(JobError("s3://b: cannot be written"), EndpointConnectionError(endpoint_url="http://h")), False, True),
        (caused(JobError("s3://b: cannot be written"), ReadTimeoutError(endpoint_url="http://h")), False, True),
        (caused(JobError("s3://b: cannot be written"), client_error("SlowDown", 503)), False, True),
        (caused(JobError("s3://b: cannot be written"), client_error("AccessDenied", 403)), False, False),
        (DENIED, False, False),
        (FileNotFoundError("x"), False, False),
        (GetTimeoutError("late"), False, False),
        (from_task(ValueError("x")), False, False),
        (JobError("no input"), False, False),
        (MemoryError(), False, False),
    ],
    ids=str,
)
def test_what_the_cluster_or_the_store_did_may_pass(error, before, under_way):
    assert [is_passing(error, is_under_way=started) for started in (False, True)] == [before, under_way]
