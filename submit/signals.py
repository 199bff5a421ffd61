"""Ctrl-C and SIGTERM: both interrupt a command in the same way, and no traceback comes of it."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
_AGAIN_S = 0.05
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def handled() -> Iterator[None]:
    """Lets SIGTERM be caught as Ctrl-C is, inside the block. Once the process winds up after it, both are ignored.

    One that comes while Python clears an object away, where nothing can be raised, comes again.
    """

    def raise_terminated(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    def send_again(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)
            return
        number = signal.SIGTERM if issubclass(lost.exc_type, Terminated) else signal.SIGINT
        threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()  # not here: nothing can be raised here either

    hook, sys.unraisablehook = sys.unraisablehook, send_again
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if signal.getsignal(signal.SIGTERM) is raise_terminated:  # and not `end_at_once`'s
            signal.signal(signal.SIGTERM, before)
            atexit.unregister(_ignore)
            atexit.register(_ignore)  # the last registered is the first called


def _ignore() -> None:
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def if_interrupted(words: str) -> Iterator[None]:
    """Adds to an interruption inside the block what it means, for the command's last line."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(words)
        raise


def words_of(error: KeyboardInterrupt) -> str:
    """An interruption as a line for people."""
    return "; ".join(getattr(error, "__notes__", ["interrupted"]))


def end_at_once() -> None:
    """From now on, while the command winds up, a further signal ends the process on the spot."""

    def end(_number: int, _frame: FrameType | None) -> None:
        os._exit(EXIT_INTERRUPTED)

    for number in _NUMBERS:
        signal.signal(number, end)
