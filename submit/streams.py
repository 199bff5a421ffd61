"""stdout and stderr, whatever became of them: closed, a pipe that nobody reads, a disk that is full."""

import os
import sys
from typing import TextIO

from rayferry.job.errors import RayferryError

_MODES = ("r", "w", "w")


def open_missing() -> None:
    """Puts /dev/null where a standard stream was closed: or the next file that is opened would be taken for it."""
    for number, (name, mode) in enumerate(zip(("stdin", "stdout", "stderr"), _MODES, strict=True)):
        if getattr(sys, name) is None:
            _discard(number)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  # for the process's life


def note(message: str) -> None:
    """A line for the person, on stderr. One that cannot be written does not matter: the command goes on."""
    try:
        _write(sys.stderr, message)
    except OSError:
        _discard(sys.stderr.fileno())


def datum(text: str) -> None:
    """What a script reads, on stdout. Who closed its end of the pipe has read enough.

    Raises:
        RayferryError: it cannot be written, such as to a disk that is full.
    """
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        _discard(sys.stdout.fileno())
    except OSError as error:
        _discard(sys.stdout.fileno())  # or Python tries again at its end, and changes the exit code
        msg = f"stdout cannot be written: {error.strerror}"
        raise RayferryError(msg) from error


def _write(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


def _discard(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
