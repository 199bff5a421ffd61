"""What each replica runs on, decided from the job and the cluster's nodes before anything starts."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rayferry.job.errors import JobError
from rayferry.job.spec import JobSpec, ReplicaRange

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

# Label of a node that the second autoscaler knows the type of; a head started by hand has none.
GROUP_LABEL = "ray.io/node-group"
_LAUNCHED = Path("~/ray_bootstrap_config.yaml")
_KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MOST_NODES = 10_000  # KubeRay's own is two thousand millions, where a RayCluster says nothing
_MAX_WORKERS = 2  # Ray's own, where a cluster's file says nothing
ACCELERATOR_PREFIX = "accelerator_type:"  # Ray's name for the resource that tells a node's GPU model


@dataclass(frozen=True)
class Node:
    """What one node of the cluster has in all, used or not.

    Attributes:
        num_cpus: logical CPUs.
        num_gpus: GPUs.
        accelerator_types: Ray's names of its GPU models.
        is_autoscaled: an autoscaler started it, and can start more.
    """

    num_cpus: float
    num_gpus: float = 0
    accelerator_types: frozenset[str] = frozenset()
    is_autoscaled: bool = False

    @classmethod
    def from_ray(cls, resources: dict[str, float], labels: dict[str, str] | None) -> "Node":
        """From Ray's tables of a node's resources and labels."""
        return cls(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            accelerator_types=frozenset(
                name.removeprefix(ACCELERATOR_PREFIX) for name in resources if name.startswith(ACCELERATOR_PREFIX)
            ),
            is_autoscaled=GROUP_LABEL in (labels or {}),
        )


@dataclass(frozen=True)
class Placement:
    """The resources of every replica.

    Attributes:
        device: `gpu` or `cpu`.
        actor_args: what the actor itself asks of Ray.
        bundle: the placement group that each replica gets for itself, or those that share a GPU; empty if none.
        note: what a user should know about the choice, or "".
        engines_per_gpu: replicas that share a GPU.
        is_certain: False where the nodes that are there do not hold it, and nobody knows what the autoscaler may start.
    """

    device: str
    actor_args: dict[str, Any]
    bundle: dict[str, float] = field(default_factory=dict)
    note: str = ""
    is_certain: bool = True
    engines_per_gpu: int = 1

    def shared(self, engines_per_gpu: int) -> "Placement":
        """The same for so many replicas on each GPU."""
        if self.device != "gpu" or engines_per_gpu == 1:
            return self
        args = self.actor_args | {"num_gpus": 1 / engines_per_gpu}
        bundle = _bundle(1, args.get("accelerator_type"), engines_per_gpu)
        return replace(self, actor_args=args, bundle=bundle, engines_per_gpu=engines_per_gpu)


def _bundle(num_gpus: int, kind: str | None, num_actors: int = 1) -> dict[str, float]:
    """What so many actors ask for; of an accelerator type Ray has each take a thousandth."""
    return {"GPU": num_gpus} | ({ACCELERATOR_PREFIX + kind: 0.001 * num_actors} if kind else {})


def plan(spec: JobSpec, nodes: Sequence[Node], *, autoscaling: bool, most: Sequence[Node] | None = None) -> Placement:
    """Chooses GPUs or CPUs for the replicas, and refuses what can never be scheduled.

    One GPU a replica: `num_gpus=1`, and no CPU, of which Ray Data would take one that reading needs. More: so many for
    the actor, whose engine's workers are processes of its own, and a placement group for them, on one node; but none
    where the number of replicas changes, as nobody would give back the group of one that Ray Data takes away. No GPU:
    a share of a node's CPUs.

    Args:
        spec: the job.
        nodes: the nodes that are there now.
        autoscaling: the cluster can start further nodes.
        most: the most nodes that it may start; None if nobody knows.

    Raises:
        JobError: no node can hold a replica, or not all of them fit.
    """
    has_gpus = any(node.num_gpus for node in nodes)
    kind = spec.resources.accelerator_type
    can_have = has_gpus or (autoscaling and (most is None or any(node.num_gpus for node in most)))
    no_gpus = not can_have and kind is None
    if spec.resources.device == "cpu" or (spec.resources.device == "auto" and no_gpus):
        return _on_cpus(spec, nodes, autoscaling=autoscaling)
    size = spec.engine.world_size
    is_certain = True
    try:
        _check_gpus(spec, nodes)
    except JobError:
        if not autoscaling:
            raise
        room = [*nodes, *(most or [])]
        is_told = kind is None or all(node.accelerator_types for node in room if node.num_gpus)
        if most is not None and is_told:
            _check_room(spec, room)
        is_certain = most is not None and is_told and _fits(spec, most)  # some of which may be up already
    extra: dict[str, Any] = {"accelerator_type": kind} if kind else {}
    note = "" if has_gpus else "no node has a GPU yet: waiting for the autoscaler (resources.device: cpu takes CPUs)"
    has_group = size > 1 and not isinstance(spec.replicas, ReplicaRange)
    args = {"num_cpus": 0, "num_gpus": size} | extra
    return Placement("gpu", args, _bundle(size, kind) if has_group else {}, note, is_certain)


def _check_room(spec: JobSpec, nodes: Sequence[Node]) -> None:
    try:
        _check_gpus(spec, nodes)
    except JobError as error:
        msg = f"{error} (this counts what its autoscaler may start)"
        raise JobError(msg) from error


def _fits(spec: JobSpec, nodes: Sequence[Node]) -> bool:
    try:
        _check_gpus(spec, nodes)
    except JobError:
        return False
    return True


def plan_here(spec: JobSpec) -> Placement:
    """The same for the cluster that this process is connected to.

    Raises:
        JobError: no node can hold a replica, or not all of them fit.
    """
    import ray  # noqa: PLC0415  # the laptop plans without Ray
    from ray.experimental.internal_kv import _internal_kv_get  # noqa: PLC0415

    nodes = [Node.from_ray(node["Resources"], node.get("Labels")) for node in ray.nodes() if node["Alive"]]
    status = _internal_kv_get(b"__autoscaling_status")
    autoscaling = can_grow(nodes, json.loads(status) if status else {})
    placement = plan(spec, nodes, autoscaling=autoscaling)
    return placement if placement.is_certain else plan(spec, nodes, autoscaling=autoscaling, most=most_here())


def most_here() -> list[Node] | None:
    """The most nodes that the autoscaler of this head may start; None if it cannot be known, none if there is none.

    `ray up` leaves the cluster's file on its head. KubeRay keeps a RayCluster, which a head may read that has the
    autoscaler beside it.
    Source: ray/autoscaler/_private/commands.py and ray/autoscaler/_private/kuberay/ (Ray 2.60).
    """
    config = None
    with suppress(Exception):  # whatever it is, it tells nothing
        if _LAUNCHED.expanduser().exists():
            config = yaml.safe_load(_LAUNCHED.expanduser().read_text())
        elif cluster := os.environ.get("RAY_CLUSTER_NAME"):
            config = _of_kuberay(cluster, (_KUBERNETES / "namespace").read_text().strip())
            if config is None:
                return []
        if config is not None:
            return most_nodes(config, is_filled=config["provider"]["type"] in {"aws", "kuberay"})
    return None


def _of_kuberay(cluster: str, namespace: str) -> dict[str, Any] | None:
    """What Ray makes of a RayCluster; None if no autoscaler is beside it."""
    os.environ.setdefault("KUBERAY_REQUEST_TIMEOUT_S", "10")  # before Ray reads it
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer  # noqa: PLC0415

    producer = AutoscalingConfigProducer(cluster, namespace)
    found = producer.kubernetes_api_client.get(f"rayclusters/{cluster}")  # the producer asks a refusal five times
    if found["spec"].get("enableInTreeAutoscaling") is not True:
        return None
    config: dict[str, Any] = producer()
    return config


def most_nodes(config: Mapping[str, Any], *, is_filled: bool) -> list[Node] | None:
    """The most nodes that an autoscaler may start; None if the cluster's file does not say what each type holds.

    Where several types share one limit, each is counted up to it: no fewer than there can be.
    Source: https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html

    Args:
        config: the file of Ray's cluster launcher.
        is_filled: Ray has put in what the provider knows of CPUs and GPUs; else a type without GPUs may have some.
    """
    in_all = config.get("max_workers", _MAX_WORKERS)
    nodes: list[Node] = []
    for name, kind in (config.get("available_node_types") or {}).items():
        resources = kind.get("resources") or {}
        if not resources.keys() >= ({"CPU"} if is_filled else {"CPU", "GPU"}):
            return None
        is_head = name == config.get("head_node_type")
        num = min(in_all, kind.get("max_workers", 0 if is_head else in_all), _MOST_NODES)
        nodes += [Node.from_ray(resources, None)] * num
    return nodes or None


def _check_gpus(spec: JobSpec, nodes: Sequence[Node]) -> None:
    size, kind = spec.engine.world_size, spec.resources.accelerator_type
    fit = [node for node in nodes if kind is None or kind in node.accelerator_types]
    gpus = f"{kind} GPUs" if kind else "GPUs"
    largest = max((node.num_gpus for node in fit), default=0)
    have = ", ".join(sorted({name for node in nodes for name in node.accelerator_types}))
    if not any(node.num_gpus for node in nodes):
        asks = f"accelerator_type: {kind}" if kind else "device: gpu"
        msg = (
            f"resources.{asks} needs {gpus}, and no node has any; use a cluster with GPUs, or set resources.device: cpu"
        )
        raise JobError(msg)
    if largest < size == 1:
        msg = (
            f"resources.accelerator_type: no node has {kind} GPUs; choose one that the cluster has: {have or 'unknown'}"
        )
        raise JobError(msg)
    if largest < size:
        msg = f"{_parallel(spec)} needs {size} {gpus} on one node, and no node has more than {largest:g}"
        msg += f" (the cluster has: {have})" if kind and have else ""
        raise JobError(f"{msg}; lower it to {int(largest)} or less, or use a cluster with larger nodes")
    places = sum(int(node.num_gpus // size) for node in fit)
    if places < spec.min_replicas:
        msg = (
            f"replicas={spec.min_replicas} of {size} {gpus} each do not fit: "
            f"the cluster has room for {places}; {_lower(spec, places)}, or add nodes"
        )
        raise JobError(msg)


def _lower(spec: JobSpec, places: int) -> str:
    """What to change, as the job file has it, so that the replicas fit."""
    return f"set {'replicas.min' if isinstance(spec.replicas, ReplicaRange) else 'replicas'}: {places}"


def _parallel(spec: JobSpec) -> str:
    """The job file's words for what makes a replica's number of GPUs."""
    what = f"tensor_parallel_size={spec.engine.tensor_parallel_size}"
    if spec.engine.pipeline_parallel_size > 1:
        what += f" x pipeline_parallel_size={spec.engine.pipeline_parallel_size}"
    return what


def _on_cpus(spec: JobSpec, nodes: Sequence[Node], *, autoscaling: bool) -> Placement:
    if spec.engine.world_size > 1:
        why = "no node has any" if not any(node.num_gpus for node in nodes) else "resources.device says cpu"
        msg = (
            f"{_parallel(spec)} needs GPUs, and {why}; "
            "set it to 1, or use a cluster with GPUs (resources.device: gpu if it starts them on demand)"
        )
        raise JobError(msg)
    num_cpus = sum(node.num_cpus for node in nodes)
    if spec.min_replicas > max(1, num_cpus) and not autoscaling:
        msg = (
            f"replicas={spec.min_replicas} do not fit: each needs a CPU, and the cluster has {num_cpus:g}; "
            f"{_lower(spec, max(1, int(num_cpus)))}, or add nodes"
        )
        raise JobError(msg)
    # One CPU of the cluster stays free to read and write; on a single one nothing is reserved.
    per_node = -(-spec.min_replicas // max(1, len(nodes)))
    smallest = min((node.num_cpus for node in nodes if node.num_cpus), default=1)
    cpus = max(0, int((smallest - 1) // per_node))
    chosen = spec.resources.device == "cpu"
    note = "" if chosen else "no GPU on this cluster: "
    return Placement("cpu", {"num_cpus": cpus}, note=f"{note}each replica runs on CPUs ({cpus} reserved)")


def can_grow(nodes: Sequence[Node], status: dict[str, Any]) -> bool:
    """True if the cluster can start further nodes.

    Ray's second autoscaler labels its nodes. The first tells of them in its status; a head that was started by hand
    has it too, for the status page only, and then calls every node's type `node_<id>`.
    Source: seen on Ray 2.60; the status is written by ray/autoscaler/_private/monitor.py.

    Args:
        nodes: the nodes that are there now.
        status: the first autoscaler's, as the cluster keeps it or as its dashboard shows it; empty if there is none.
    """
    report = status.get("autoscaler_report") or status.get("autoscalerReport") or {}
    active = report.get("active_nodes") or report.get("activeNodes") or {}
    idle = report.get("idle_nodes") or report.get("idleNodes") or {}
    named = any(not name.startswith("node") for name in {**active, **idle})
    return named or any(node.is_autoscaled for node in nodes)


class ReplicaGroups:
    """Placement groups, made as Ray Data makes the replicas' actors: one for every replica, or for those of one GPU.

    Source: https://docs.ray.io/en/latest/ray-core/scheduling/placement-group.html
    """

    def __init__(self, bundle: dict[str, float], replicas_each: int = 1) -> None:
        self._bundle = bundle
        self._replicas_each = replicas_each
        self._num_replicas = 0
        self._groups: list[PlacementGroup] = []

    def as_remote_args_fn(self) -> Callable[[], dict[str, Any]]:
        """What `map_batches` calls for each new actor: its group."""
        from ray.util.placement_group import placement_group  # noqa: PLC0415  # the laptop plans without Ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

        def make() -> dict[str, Any]:
            if self._num_replicas % self._replicas_each == 0:
                self._groups.append(placement_group([self._bundle], strategy="STRICT_PACK"))
            self._num_replicas += 1
            return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._groups[-1])}

        return make

    def remove(self) -> None:
        """Gives all of them back."""
        from ray.util.placement_group import remove_placement_group  # noqa: PLC0415

        while self._groups:
            remove_placement_group(self._groups.pop())
