"""What tests share: one local stack for the whole session, in a state folder of its own."""

import atexit
import os
import secrets
import shutil
import signal
import tempfile
import uuid
from pathlib import Path

# A shell starts what it puts into the background deaf to Ctrl-C, and children inherit that; some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Ray reads these when it is imported: the local stack's Ray keeps to the loopback address and asks for a token, and so
# must a driver in this process. The token's file is where the stack will look for it.
STATE = Path(tempfile.mkdtemp(prefix="rayferry-tests-"))
atexit.register(shutil.rmtree, STATE, ignore_errors=True)  # not the fixture's to do: a session may go without it
TOKEN = STATE / "local" / "auth_token"
TOKEN.parent.mkdir(mode=0o700)
TOKEN.write_text(secrets.token_hex(32))
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": str(TOKEN),
}

import pytest

from rayferry.submit.local import stack as local_stack


@pytest.fixture(scope="session")
def stack():
    """A real Ray head and a real S3 server on free ports; the process's environment points at them."""
    before = dict(os.environ)
    os.environ["RAYFERRY_STATE"] = str(STATE)
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
