"""A local stack for one benchmark; import this before Ray, which reads the token's variables when it is imported."""

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

STATE = Path(tempfile.mkdtemp(prefix="rayferry-bench-"))
TOKEN = STATE / "local" / "auth_token"  # where the stack will look for it
TOKEN.parent.mkdir(mode=0o700)
TOKEN.write_text(secrets.token_hex(32))
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(TOKEN), "RAYFERRY_STATE": str(STATE)}
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the head keeps to the loopback address, and so must a driver
atexit.register(shutil.rmtree, STATE, ignore_errors=True)

BIN = Path(sys.executable).parent


def run_on_stack(run):
    """Calls `run` with a folder and the stack, which ends with it."""
    from rayferry.submit.local import stack as local_stack

    try:
        stack = local_stack.up(print)
        os.environ.update(stack.environ())
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), stack)
    finally:
        local_stack.down()
