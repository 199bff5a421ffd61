"""Lines for people. Each begins with MARK, so that the laptop finds them among Ray's and vLLM's own."""

import time

MARK = "[rayferry] "


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def say(message: str) -> None:
    """Writes one line to the driver's log."""
    print(f"{MARK}{time.strftime('%H:%M:%S')} {' '.join(message.splitlines())}", flush=True)  # noqa: T201
