"""Which rows kill the engine: batches are told to the board before they run, and what ran at a death is suspect.

What kills an engine cannot tell of itself, so all that is known of a batch whose process died is that it was there.
One death may have any cause. After the second, the batch runs alone in its replica; if the engine dies again, it runs
piece by piece, each told before, until a row that was alone with the engine is known by its death.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

# A batch's first id, last id and number of rows: the same whenever Ray Data tries its task again.
Key = tuple[str, str, int]

_SUSPECT_AFTER = 2
_PIECES = 32
# Deaths of one replica with no row answered anywhere: in company, and while rows are told apart.
_MOST_DEATHS, _MOST_DEATHS_ALONE = 5, 7
# How long failed loads of one replica are no matter while others are up, as far as is known, and no row is answered:
# those may be gone, unseen.
_PARDON_S = 3600.0


class Suspect(NamedTuple):
    """A batch to run alone.

    Attributes:
        deaths: of engines that ran it.
        pieces: numbers of its rows, to be run one piece after another.
        poison: for the number of each row that is known to kill the engine, the deaths it took to know.
    """

    deaths: int
    pieces: list[list[int]]
    poison: dict[int, int]


@dataclass
class _Case:
    """What is known of one batch: nothing but who runs it, for most."""

    num_rows: int
    life: str | None = None
    deaths: int = 0
    pieces: list[list[int]] | None = None
    at: int | None = None
    poison: dict[int, int] = field(default_factory=dict)

    def died(self) -> None:
        self.deaths += 1
        self.life = None
        if self.at is None or self.pieces is None:
            return
        # the pieces before it were answered: they can run as one
        good, piece, later = sorted(chain(*self.pieces[: self.at])), self.pieces[self.at], self.pieces[self.at + 1 :]
        if len(piece) == 1:
            self.poison[piece[0]] = self.deaths
            split = []
        else:
            size = -(-len(piece) // _PIECES)
            split = [piece[start : start + size] for start in range(0, len(piece), size)]
        # the guilty last: an engine that answers any of the others is not dead for good
        self.pieces = [*([good] if good else []), *later, *split]
        self.at = None

    def suspect(self) -> Suspect | None:
        if self.deaths < _SUSPECT_AFTER and not self.poison:
            return None
        if self.pieces is None:
            rows = [row for row in range(self.num_rows) if row not in self.poison]
            self.pieces = [rows] if rows else []
        return Suspect(self.deaths, self.pieces, self.poison)


class Quarantine:
    """The board's part of it. A life is one process of a replica, named `replica/anything`."""

    def __init__(self) -> None:
        self._cases: dict[Key, _Case] = {}
        self._lives: dict[str, str] = {}
        self._dead: set[str] = set()
        self._in_a_row: Counter[str] = Counter()
        self._pardoned: dict[str, float] = {}  # since when
        self._alone: set[str] = set()

    @property
    def num_poison(self) -> int:
        """Rows known to kill the engine."""
        return sum(len(case.poison) for case in self._cases.values())

    def life_before(self, life: str) -> str | None:
        """Notes a replica's new life; gives the one before it, if nobody told of its end."""
        replica = life.partition("/")[0]
        before = self._lives.get(replica)
        self._lives[replica] = life
        return before if before not in self._dead else None

    def begin(self, key: Key, life: str) -> Suspect | None:
        """A batch is about to run. If it must not run in company, it has not begun: see `expose`."""
        case = self._cases.setdefault(key, _Case(key[2]))
        if case.life not in (None, life):
            case.died()  # Ray gave it to another process, so the one that had it is gone
        suspect = case.suspect()
        if suspect is None:
            case.life = life
        return suspect

    def expose(self, key: Key, life: str, at: int) -> None:
        """A suspect's piece is about to run, alone; those before it are answered."""
        case = self._cases[key]
        case.life, case.at = life, at
        if at:
            self._answered()

    def end(self, key: Key, life: str) -> None:
        """A batch is done."""
        case = self._cases.get(key)
        if case is None or case.life not in (None, life):
            return
        if case.pieces != []:
            self._answered()
        if case.poison:  # remembered: the batch may come again, with others of its task
            self._cases[key] = _Case(case.num_rows, deaths=case.deaths, poison=case.poison)
        else:
            del self._cases[key]

    def died(self, life: str, *, counts: bool = True) -> int:
        """A process ended, or will. Gives how often its replica died in a row, if that is too often; else 0.

        Args:
            life: the process.
            counts: this death is one of those in a row; else it is pardoned, for an hour if no row is answered.
        """
        if life in self._dead:
            return 0
        self._dead.add(life)
        replica = life.partition("/")[0]
        for case in self._cases.values():
            if case.life == life:
                if case.at is not None:
                    self._alone.add(replica)
                case.died()
        if not counts and time.monotonic() - self._pardoned.setdefault(replica, time.monotonic()) < _PARDON_S:
            return 0
        self._in_a_row[replica] += 1
        num = self._in_a_row[replica]
        return num if num >= (_MOST_DEATHS_ALONE if replica in self._alone else _MOST_DEATHS) else 0

    def _answered(self) -> None:
        self._in_a_row.clear()
        self._pardoned.clear()
        self._alone.clear()


class Gate:
    """Lets batches of a replica run together, or one alone: that with most deaths first."""

    def __init__(self) -> None:
        self._num_together = 0
        self._is_alone = False
        self._waiting: list[int] = []
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Waits until nobody is alone, or wants to be."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_alone and not self._waiting)
            self._num_together += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_together -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self, deaths: int) -> AsyncIterator[None]:
        """Waits until everybody else is done; keeps those that come waiting."""
        async with self._changed:
            self._waiting.append(deaths)
            try:
                await self._changed.wait_for(
                    lambda: not self._is_alone and not self._num_together and deaths == max(self._waiting)
                )
                self._is_alone = True
            finally:
                self._waiting.remove(deaths)
        try:
            yield
        finally:
            async with self._changed:
                self._is_alone = False
                self._changed.notify_all()
