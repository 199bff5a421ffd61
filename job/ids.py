"""Rows that name themselves: which names come more than once, found before any row is answered.

The first row of a name, by file and position, keeps it, however the work is shared out; the others fail.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from rayferry.job.storage import File

if TYPE_CHECKING:
    import numpy.typing as npt

# by the hash of an id that comes more than once: file and position of its first row
Repeated = Mapping[int, tuple[int, int]]
# position and id of every record of an open file that names itself
Names = Callable[[Any, str], Iterator[tuple[int, str]]]
_MAX_FILES_PER_TASK = 64
_BYTES_PER_TASK = 64 << 20


def hash_of(name: str) -> int:
    """A row's id as 64 bits, the same on every node."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest(), "little")


def find_repeated(filesystem: Any, files: Sequence[File], names: Names) -> Repeated:
    """Reads the ids of all rows, in parallel; needs 16 bytes of the driver's memory for each.

    Args:
        filesystem: where the files are.
        files: the input, in order.
        names: reads the ids of one file.

    Raises:
        OSError: the store failed.
    """
    groups: list[list[tuple[int, str]]] = [[]]
    size = 0
    for index, file in enumerate(files):
        if len(groups[-1]) >= _MAX_FILES_PER_TASK or size > _BYTES_PER_TASK:
            groups.append([])
            size = 0
        groups[-1].append((index, file.path))
        size += file.num_bytes
    task = ray.remote(_hashes)
    shared = ray.put((filesystem, names))
    parts = [part for group in ray.get([task.remote(shared, group) for group in groups]) for part in group]
    hashes = np.concatenate([part[1] for part in parts])
    if not hashes.size:
        return {}
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = np.concatenate([[False], ordered[1:] == ordered[:-1]])
    second = again & ~np.concatenate([[False], again[:-1]])  # of each run of equal ones; the one before it is the first
    winners = order[np.flatnonzero(second) - 1]
    owners = np.repeat([part[0] for part in parts], [len(part[1]) for part in parts])
    positions = np.concatenate([part[2] for part in parts])
    return {int(hashes[at]): (int(owners[at]), int(positions[at])) for at in winners}


def _hashes(
    shared: tuple[Any, Names], group: list[tuple[int, str]]
) -> "list[tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.int64]]]":
    """(file, hashes, positions) of the rows that have an id, in order."""
    filesystem, names = shared
    results = []
    for index, path in group:
        hashes: list[int] = []
        positions: list[int] = []
        with filesystem.open_input_file(path) as f:
            for position, name in names(f, path):
                hashes.append(hash_of(name))
                positions.append(position)
        results.append((index, np.array(hashes, np.uint64), np.array(positions, np.int64)))
    return results
