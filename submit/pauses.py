"""How long to wait before a question is asked again."""

import random
from collections.abc import Iterator

_MAX_PAUSE_S = 15.0


def growing_pauses(first_s: float) -> Iterator[float]:
    """Seconds between questions: longer and longer, and not the same for all who ask."""
    pause = first_s
    while True:
        yield pause * random.uniform(0.75, 1.25)  # noqa: S311  # nothing is kept secret by it
        pause = min(2 * pause, _MAX_PAUSE_S)
