"""What tests of exports share."""

import json
import os
import subprocess
import sys

import pytest

from rayferry.submit.schedule.export.starting import Starting

HOSTILE = '/srv/a b/100%/$HOME/`x`/it\'s "q"/ü'
_STUB = """#!{python}
import json, os, sys
json.dump({{"words": sys.argv[1:], "variables": dict(os.environ)}}, open({path!r}, "w"))
"""


@pytest.fixture
def starting():
    return Starting("s3://bucket/schedules/")


@pytest.fixture
def started(tmp_path):
    """A stand-in for rayferry; gives its path, and a function that runs a shell line and says what it was told."""
    program, said = tmp_path / "rayferry", tmp_path / "said.json"
    program.write_text(_STUB.format(python=sys.executable, path=str(said)))
    program.chmod(0o755)

    def run(line, **variables):
        environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), **variables}
        subprocess.run(["/bin/sh", "-c", line], check=True, env=environ, cwd="/")
        return json.loads(said.read_text())

    return str(program), run
