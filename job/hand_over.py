"""How rows are handed to replicas: in how large pieces, and how many at once."""

import inspect
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from rayferry.job.spec import GENERATING, JobSpec, ReplicaRange

if TYPE_CHECKING:
    from rayferry.job.look import Input

# Rows that should be with an engine at once, so that those can be put in order that wait: four times the sequences that
# vLLM runs together by default. On CPUs, where it is slow, half as many.
_ROWS_IN_FLIGHT = {"gpu": 4096, "cpu": 512}
_ROUNDS_IN_FLIGHT = 4
# Of more rows than the replicas have at once, a block may have a tenth more than meant: the replica that is ready first
# would have more than its part of them.
_SURE_SHARE = 0.9
_MOST_EQUAL_BYTES = 32 << 20  # that are cut again into equal pieces, once they are all read
_MIN_BLOCKS_IN_FLIGHT, _MAX_BLOCKS_IN_FLIGHT = 3, 64
# Each batch is two calls to the board; Ray Data runs at most four batches of a block at a time.
BATCHES_PER_BLOCK = 2
# Pieces of the input for one replica alone, and for each of several, which have to end together.
_BLOCKS_ALONE, _BLOCKS_PER_REPLICA = 16, 64
_MAX_ROWS_PER_BLOCK = 12_288
_MAX_TOKENS_PER_BLOCK = 1 << 18  # to be generated; it bounds what is lost with a replica
_UNLIMITED_ANSWER_TOKENS = 1024  # taken for an answer without max_tokens
_MAX_BLOCK_BYTES = 16 << 20


class Pieces(NamedTuple):
    """How the rows of a run go to its replicas.

    Attributes:
        rows: of a block, about.
        num_bytes: at which Ray Data begins a new block.
        at_once: blocks that each replica has at once.
        equal: blocks that all rows are cut into again once they are read; None where they go over as they are read.
        all_here: all rows are with the replicas at once.
    """

    rows: int
    num_bytes: int
    at_once: int
    equal: int | None
    all_here: bool


def pieces(spec: JobSpec, found: "Input", device: str, num_rows: int) -> Pieces:
    """How the rows that are still to do, about `num_rows`, go to replicas on a device, `gpu` or `cpu`."""
    at_once = rows_at_once(spec, device, num_rows)
    all_here = num_rows <= at_once * spec.min_replicas
    blocks = equal_blocks(spec, device, num_rows, found.row_bytes)
    if blocks is not None:
        equal = blocks * spec.max_replicas
        return Pieces(num_rows // equal, _MAX_BLOCK_BYTES, blocks, equal, all_here)  # its answers stay one block
    rows = block_rows(spec, found)
    return Pieces(rows, rows * found.row_bytes, blocks_at_once(spec, at_once, rows), None, all_here)


def block_rows(spec: JobSpec, found: "Input") -> int:
    """Rows that one task of a replica takes on: few enough to share them out evenly, to the end of the run.

    Each hand-over costs some 25 ms of Ray's, whatever it holds: a large input goes over in larger pieces, as large as
    the work in them allows.
    """
    num_blocks = _BLOCKS_ALONE if spec.max_replicas == 1 else spec.max_replicas * _BLOCKS_PER_REPLICA
    return min(max(spec.batch_size, found.num_rows // num_blocks), _most_rows(spec, found.row_bytes))


def _most_rows(spec: JobSpec, row_bytes: int) -> int:
    """The most rows for a block, by their bytes and by the work in them."""
    most = max(1, min(_MAX_ROWS_PER_BLOCK, _MAX_BLOCK_BYTES // row_bytes))
    if spec.task not in GENERATING:
        return most
    tokens = (spec.sampling.max_tokens or _UNLIMITED_ANSWER_TOKENS) * (spec.sampling.n or 1)
    return min(most, max(spec.batch_size, _MAX_TOKENS_PER_BLOCK // tokens))


def rows_at_once(spec: JobSpec, device: str, num_rows: int) -> int:
    """Rows that one replica should have: enough to keep its engine full and to put those in order that wait.

    None takes more than its part of them while others load.
    """
    seqs = spec.engine.max_num_seqs
    rows = _ROUNDS_IN_FLIGHT * seqs if seqs else _ROWS_IN_FLIGHT[device]
    return rows if spec.max_replicas == 1 else min(rows, -(-num_rows // spec.max_replicas))


def equal_blocks(spec: JobSpec, device: str, num_rows: int, row_bytes: int) -> int | None:
    """Blocks for each of several replicas, if all rows can be with them at once: then each gets the same part.

    What is handed over later is late: where the longest go first, the first block is over when nearly all rows are. So
    these are cut by their number, not by their bytes. On CPUs replicas and this cutting would wait for one another.

    Args:
        spec: the job.
        device: `gpu` or `cpu`, as placed.
        num_rows: of the input that are left, about.
        row_bytes: of one of them, about.

    Returns:
        None where there is one replica, or a number that changes, more rows than that, hardly any, or too many pieces;
        and on CPUs.
    """
    if device != "gpu" or spec.max_replicas == 1 or isinstance(spec.replicas, ReplicaRange):
        return None
    share = -(-num_rows // spec.max_replicas)
    is_all = share <= rows_at_once(spec, device, num_rows) and num_rows * row_bytes <= _MOST_EQUAL_BYTES
    if share < spec.batch_size or not is_all:
        return None
    blocks = -(-share // min(max(spec.batch_size, -(-share // _BLOCKS_ALONE)), _most_rows(spec, row_bytes)))
    return blocks if blocks <= _MAX_BLOCKS_IN_FLIGHT else None


def blocks_at_once(spec: JobSpec, rows: int, rows_per_block: int) -> int:
    """Blocks that each replica should have at once, where they are not cut equally.

    Args:
        spec: the job.
        rows: by `rows_at_once`.
        rows_per_block: by `block_rows`.
    """
    share = rows if spec.max_replicas == 1 else math.ceil(rows * _SURE_SHARE)
    return max(_MIN_BLOCKS_IN_FLIGHT, min(_MAX_BLOCKS_IN_FLIGHT, -(-share // rows_per_block)))


def pool(spec: JobSpec, blocks: int) -> dict[str, Any]:
    """How many replicas, and how many blocks each has at once, as arguments of `map_batches`."""
    from ray.data import ActorPoolStrategy  # noqa: PLC0415  # the laptop imports this module without Ray

    if isinstance(spec.replicas, ReplicaRange):
        size = {"min_size": spec.replicas.min, "max_size": spec.replicas.max}  # it grows by what waits at replicas
    else:
        size = {"size": spec.replicas, "max_tasks_in_flight_per_actor": blocks}  # else Ray Data sends as many again
    if "max_concurrent_calls_per_actor" in inspect.signature(ActorPoolStrategy).parameters:
        return {"compute": ActorPoolStrategy(**size, max_concurrent_calls_per_actor=blocks)}
    return {"compute": ActorPoolStrategy(**size), "max_concurrency": blocks}  # an older Ray
