"""What tests share: one local stack for the whole session, in a state folder of its own."""

import os
import uuid

# The local stack's Ray keeps to the loopback address; a driver in this process must too. Ray reads this at import.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import pytest

from rayferry.submit.local import stack as local_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """A real Ray head and a real S3 server on free ports; the process's environment points at them."""
    before = dict(os.environ)
    os.environ["RAYFERRY_STATE"] = str(tmp_path_factory.mktemp("state"))
    try:
        found = local_stack.up(print)
        os.environ.update(found.environ())
        yield found
    finally:
        local_stack.down()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def bucket_uri(stack):
    """A fresh prefix in the session's bucket."""
    return f"s3://{local_stack.BUCKET}/{uuid.uuid4().hex}"
