"""The rows of a run through its replicas: Ray Data as it is set up for that, and the pipeline from source to parts."""

import inspect
import os
from typing import TYPE_CHECKING, Any

from rayferry.job import hand_over, sharing
from rayferry.job.errors import JobError, TooManyErrorsError
from rayferry.job.log import say
from rayferry.job.placement import Placement, ReplicaGroups
from rayferry.job.spec import JobSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import Dataset

    from rayferry.job.look import Input
    from rayferry.job.sink import PartsDatasink

_BLOCKS_WAITING_PER_REPLICA = 24
_LEAST_WAITING_BYTES = 64 << 20
_SHARE_EXPIRES_S = "30"


def before_ray_data() -> None:
    """Sets what Ray Data reads when it is imported.

    A killed attempt's share of the cluster is kept for it, by Ray Data, until it expires: three minutes in which the
    next one has half of the nodes, too little to write what a busy engine answers. A living one renews it every 10 s.
    Source: `AUTOSCALING_REQUEST_EXPIRE_TIME_S` in ray/data/_internal/cluster_autoscaler/ (Ray 2.60).
    """
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", _SHARE_EXPIRES_S)


def share(spec: JobSpec, placement: Placement, num_rows: int) -> tuple[JobSpec, Placement]:
    """The job and the placement with a replica for each engine, where several share a GPU; `num_rows`: still to do."""
    number, why = sharing.chosen(spec, num_rows) if placement.device == "gpu" else (1, "")
    if why:
        say(why)
    return sharing.with_engines(spec, number), placement.shared(number)


def set_up_ray_data(pieces: hand_over.Pieces, replicas: int) -> None:
    """Sets what of Ray Data this driver uses, before the dataset is made; `replicas`: the most there may be."""
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current()
    context.target_max_block_size = pieces.num_bytes
    waiting = None
    if pieces.equal is None:  # else they are few; reading runs ahead until it fills a share of the object store
        waiting = max(_LEAST_WAITING_BYTES, _BLOCKS_WAITING_PER_REPLICA * replicas * pieces.num_bytes)
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=waiting)
    context.execution_no_progress_timeout_s = -1  # waiting for nodes, or for a model, is no fault; `timeout` bounds it
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One of them asks for a new replica's arguments each time it looks, so for a placement group that nobody uses.
    # Source: https://github.com/ray-project/ray/issues/55995
    context.issue_detectors_config.detectors = []


def answer(  # noqa: PLR0913  # what it brings together
    spec: JobSpec,
    found: "Input",
    dataset: "Dataset",
    pieces: hand_over.Pieces,
    *,
    predictor: type | None,
    placement: Placement,
    board: "ActorHandle[Any]",
    parts: "PartsDatasink",
) -> None:
    """Sends all rows of the dataset through the replicas into parts."""
    import ray

    from rayferry.job.predictor import LLMPredictor

    groups = ReplicaGroups(placement.bundle, placement.engines_per_gpu)
    options = placement.actor_args
    # Ray 2.64 will have no place for it; without a group the GPUs of a replica are of one node, too.
    if placement.bundle and "ray_remote_args_fn" in inspect.signature(dataset.map_batches).parameters:
        options = options | {"ray_remote_args_fn": groups.as_remote_args_fn()}
    if pieces.equal is not None:
        dataset = dataset.repartition(pieces.equal)
    dataset = dataset.map_batches(
        predictor or LLMPredictor,
        fn_constructor_kwargs={
            "spec": spec,
            "device": placement.device,
            "progress": board,
            "openai": found.openai,
            "all_here": pieces.all_here,
        },
        batch_size=max(1, pieces.rows // hand_over.BATCHES_PER_BLOCK),
        batch_format="pyarrow",
        **hand_over.pool(spec, pieces.at_once),
        **options,
    )
    try:
        dataset.write_datasink(parts)
    except Exception as error:
        now = ray.get(board.snapshot.remote())  # raises what a dead board is: in a task's error it may not be told
        # told by a write task or a replica itself; Ray's error only quotes it
        if now.hopeless:
            raise TooManyErrorsError(now.hopeless) from error
        if now.failure:
            raise JobError(now.failure) from error
        raise
    finally:
        groups.remove()
