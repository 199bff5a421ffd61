"""The `rayferry` command, whose jobs run by driver.py and which waits for less long than a person's.

usage: laptop.py ARGUMENTS of rayferry
"""

import functools
import shlex
import sys
from pathlib import Path

from rayferry.submit import cli, launch, request, retry
from rayferry.submit.follow import follow

LOST_AFTER_S = 15.0


def entrypoint(submission_id, options=()):
    """The shell line of a job; see `rayferry.runtime_env.describe`."""
    driver = Path(__file__).with_name("driver.py")
    return shlex.join([sys.executable, str(driver), "spec.json", "--submission-id", submission_id, *options])


if __name__ == "__main__":
    request.entrypoint = entrypoint
    launch.follow = functools.partial(follow, lost_after_s=LOST_AFTER_S)
    retry._FIRST_PAUSE_S = 0.5
    cli.main(prog_name="rayferry")
