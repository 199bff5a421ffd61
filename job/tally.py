"""What replicas have done: each counts for itself, the board sums up."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """One replica's process so far.

    Attributes:
        num_answered: calls that its engine has answered.
        num_input_tokens: of their prompts.
        num_cached_tokens: as many of those were in the engine's prefix cache.
        num_generated_tokens: of their answers.
        idle_s: seconds without anything to answer, between the first call and the last.
        first_s: when the first answer was there, in seconds from the replica's readiness.
        last_s: the same of the last one.
    """

    num_answered: int = 0
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    idle_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    _since: float = field(default_factory=time.monotonic, repr=False, compare=False)

    def add(self, output: Any) -> None:
        """Counts a final output of vLLM; a refusal is none."""
        if isinstance(output, Exception):
            return
        self.last_s = time.monotonic() - self._since
        self.first_s = self.last_s if self.first_s is None else self.first_s
        self.num_answered += 1
        self.num_input_tokens += len(getattr(output, "prompt_token_ids", None) or ())
        self.num_cached_tokens += getattr(output, "num_cached_tokens", None) or 0
        answers = getattr(output, "outputs", None)
        if isinstance(answers, list):  # what is pooled has one, which is not
            self.num_generated_tokens += sum(len(answer.token_ids) for answer in answers)


@dataclass
class Life:
    """One replica's process, as the board sees it.

    Attributes:
        started_at: seconds since 1970.
        ended_at: when it was known to be dead; None: it is not.
        ready_at: when its model was loaded.
        tally: its own last word.
    """

    started_at: float
    ended_at: float | None = None
    ready_at: float | None = None
    tally: Tally | None = None

    @property
    def first_at(self) -> float | None:
        """When its first answer was there, in seconds since 1970."""
        if self.tally is None or self.tally.first_s is None or self.ready_at is None:
            return None
        return self.ready_at + self.tally.first_s

    def to_json(self, now: float) -> dict[str, Any]:
        """One entry of the manifest's `replicas`."""
        tally = self.tally or Tally()
        end = self.ended_at or now
        seconds = None if tally.last_s is None else max(1e-3, tally.last_s)
        return {
            "answered": tally.num_answered,
            "rows_per_s": seconds and round(tally.num_answered / seconds, 2),
            "tokens_per_s": seconds and round(tally.num_generated_tokens / seconds, 1),
            "seconds": round(end - self.started_at, 3),
            "idle_s": round(tally.idle_s, 3),
        }


def summary(lives: Iterable[Life], gpus_per_replica: float, now: float) -> dict[str, Any]:
    """What the manifest tells of an attempt's replicas.

    Args:
        lives: their processes.
        gpus_per_replica: GPUs, or the share of one, that each had.
        now: the attempt's end.
    """
    several = list(lives)
    tallies = [life.tally for life in several if life.tally is not None]
    asked = sum(tally.num_input_tokens for tally in tallies)
    cached = sum(tally.num_cached_tokens for tally in tallies)
    return {
        "prefix_cache_hit_rate": round(cached / asked, 4) if asked else None,
        "gpu_seconds": round(gpus_per_replica * sum((life.ended_at or now) - life.started_at for life in several), 1),
        "replicas": [life.to_json(now) for life in several],
    }
