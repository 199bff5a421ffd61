"""Rows of files, as spans of positions: ten million rows are some thousand numbers."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayferry.job.errors import JobError

Positions = npt.NDArray[np.int64]


class Spans:
    """Rows of one file that are done, as spans of positions."""

    def __init__(self, spans: Iterable[Sequence[int]]) -> None:
        """Takes spans (start, stop), in any order.

        Raises:
            JobError: two of them overlap.
        """
        ordered = np.array(sorted((start, stop) for start, stop in spans), np.int64).reshape(-1, 2)
        self._starts, self._stops = ordered[:, 0], ordered[:, 1]
        if (self._starts[1:] < self._stops[:-1]).any():
            msg = "some rows are done twice, by the run's own records; start it anew with --overwrite"
            raise JobError(msg)
        self._before = np.concatenate([[0], np.cumsum(self._stops - self._starts)])

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._before[-1])

    def contain(self, positions: "Sequence[int] | Positions") -> "npt.NDArray[np.bool_]":
        """For each position, whether it is done."""
        wanted = np.asarray(positions, np.int64)
        at = np.searchsorted(self._starts, wanted, side="right") - 1
        return (at >= 0) & (wanted < self._stops[at]) if len(self._starts) else np.zeros(len(wanted), bool)

    def cover(self, start: int, stop: int) -> bool:
        """True if all positions from `start` to before `stop` are done."""
        return self._below(stop) - self._below(start) == stop - start

    def _below(self, position: int) -> int:
        at = int(np.searchsorted(self._starts, position, side="right")) - 1
        return int(self._before[at] + min(position, self._stops[at]) - self._starts[at]) if at >= 0 else 0


def spans_of(table: pa.Table) -> dict[str, list[list[int]]]:
    """The rows of a table by their file, as spans; by its columns `source_uri` and `position`."""
    uris, positions = table.column("source_uri"), table.column("position")
    return {
        uri: _spans(np.sort(positions.filter(pc.equal(uris, uri)).to_numpy())) for uri in pc.unique(uris).to_pylist()
    }


def without(rows: Mapping[str, list[list[int]]], others: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Rows by their file, but for those of `others`; a file of which none is left is not there."""
    left = {uri: np.setdiff1d(_positions(spans), _positions(others.get(uri, []))) for uri, spans in rows.items()}
    return {uri: _spans(positions) for uri, positions in left.items() if len(positions)}


def _spans(ordered: "Positions") -> list[list[int]]:
    cuts = np.flatnonzero(np.diff(ordered) != 1) + 1
    return [[int(span[0]), int(span[-1]) + 1] for span in np.split(ordered, cuts)]


def _positions(spans: Iterable[Sequence[int]]) -> "Positions":
    return np.concatenate([np.empty(0, np.int64), *(np.arange(start, stop) for start, stop in spans)])
