"""How many engines share one GPU. One that answers a small model leaves it idle most of the time."""

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rayferry.job import fit, storage, weights
from rayferry.job.errors import EngineError, root_line
from rayferry.job.placement import ACCELERATOR_PREFIX
from rayferry.job.spec import GENERATING, JobSpec

# A model is small if its weights are at most this share of the GPU's memory: (share, engines).
# Source: docs/performance.md, "At the engine's speed".
_SMALL = ((1 / 32, 4), (1 / 16, 2))
_MIN_ROWS_PER_ENGINE = 500  # below, an engine more costs more to load than it saves
_CPUS_PER_ENGINE = 2  # its own process and the one that feeds it
_NODE_BYTES_PER_ENGINE = 8 << 30  # of the node's memory: three processes that have imported vllm
_UTILIZATION = 0.9
_CACHE_SHARE = 0.7  # of what an engine has beside its weights; the rest is for activations and CUDA graphs
_UNKNOWN_CACHE_SHARE = 0.5  # of all that it has, where its weights are not known
_MIB = 1 << 20
_LOOK_TIMEOUT_S = 60.0
_MOST_NODES = 32  # of a large cluster, some tell for all


@dataclass(frozen=True)
class Room:
    """What there is for engines on a node with GPUs.

    Attributes:
        gpu_bytes: memory of its smallest GPU that an engine alone may use; 0 if it cannot be told.
        cpus_per_gpu: CPUs beside each GPU.
        node_bytes_per_gpu: the node's own memory beside each GPU.
        model: as far as its size goes; None if it cannot be told.
        max_model_len: of the engine; None: as long as the model can.
    """

    gpu_bytes: float
    cpus_per_gpu: float
    node_bytes_per_gpu: float
    model: fit.Model | None
    max_model_len: int | None = None

    def holds(self, number: int) -> bool:
        """True if each of so many engines has a KV cache for one sequence at least."""
        needed = self.model and self.model.cache_bytes(self.max_model_len)
        if self.model is None or not needed:
            return False
        return _cache(self.gpu_bytes / number, self.model.num_bytes) >= needed


def _cache(num_bytes: float, weight_bytes: float) -> float:
    """Bytes for the KV cache of an engine that may use so many."""
    return _CACHE_SHARE * (num_bytes - weight_bytes)


def engines_per_gpu(room: Room, num_rows: int) -> tuple[int, str]:
    """How many engines are to share a GPU, and why.

    Args:
        room: on a node with GPUs.
        num_rows: of the input, for each GPU.
    """
    if room.model is None or not room.gpu_bytes:
        return 1, ""
    weight_bytes = room.model.num_bytes
    small = next((number for share, number in _SMALL if weight_bytes <= share * room.gpu_bytes / _UTILIZATION), 1)
    number = min(
        small,
        num_rows // _MIN_ROWS_PER_ENGINE,
        int(room.cpus_per_gpu // _CPUS_PER_ENGINE),
        int(room.node_bytes_per_gpu // _NODE_BYTES_PER_ENGINE),
    )
    number = next((fewer for fewer in range(number, 1, -1) if room.holds(fewer)), 1)
    if number == 1:
        return 1, ""
    size = f"the model has {weight_bytes / 1e9:.1f} GB of weights, of a GPU {room.gpu_bytes / 1e9:.0f} GB may be used"
    return number, f"{number} engines share each GPU: {size} (resources.engines_per_gpu)"


def look(spec: JobSpec, resources: Mapping[str, float]) -> Room:
    """Looks at the node that this process is on, of which Ray has these resources."""
    options = spec.engine.to_kwargs()
    num_gpus = max(1.0, resources["GPU"])
    return Room(
        gpu_bytes=min(memory_of_gpus(), default=0) * float(options.get("gpu_memory_utilization", _UTILIZATION)),
        cpus_per_gpu=min(resources.get("CPU", 0), os.cpu_count() or 1) / num_gpus,
        node_bytes_per_gpu=resources.get("memory", 0) / num_gpus,
        model=_model_of(spec),
        max_model_len=options.get("max_model_len"),
    )


def chosen(spec: JobSpec, num_rows: int) -> tuple[int, str]:
    """How many engines share a GPU of the cluster that this process is connected to, and what to tell of it."""
    if spec.resources.engines_per_gpu != "auto":
        return spec.resources.engines_per_gpu, ""
    is_fixed = isinstance(spec.replicas, int)
    if spec.engine.world_size > 1 or spec.task not in GENERATING or not is_fixed:
        return 1, ""
    if num_rows < 2 * _MIN_ROWS_PER_ENGINE * spec.min_replicas:
        return 1, ""
    import ray  # noqa: PLC0415  # the laptop imports this module without Ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    kind = spec.resources.accelerator_type
    wanted = "GPU" if kind is None else ACCELERATOR_PREFIX + kind
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(wanted)]
    if not nodes:
        return 1, "one engine has a GPU, as no node with GPUs is up to look at; see resources.engines_per_gpu"

    def ask(node: Mapping[str, Any]) -> Any:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(look).options(num_cpus=0, scheduling_strategy=there, max_retries=1)
        return task.remote(spec, node["Resources"])

    asked = [ask(node) for node in nodes[:_MOST_NODES]]
    try:
        rooms: list[Room] = ray.get(asked, timeout=_LOOK_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        for one in asked:
            ray.cancel(one, force=True)
        return 1, f"one engine has a GPU: a node with GPUs cannot be looked at ({root_line(error)})"
    return min(engines_per_gpu(room, num_rows // spec.min_replicas) for room in rooms)


def with_engines(spec: JobSpec, number: int) -> JobSpec:
    """The job with a replica for each of `number` engines on every GPU."""
    if number == 1:
        return spec.model_copy(update={"resources": spec.resources.model_copy(update={"engines_per_gpu": 1})})
    resources = spec.resources.model_copy(update={"engines_per_gpu": number})
    return spec.model_copy(update={"replicas": spec.min_replicas * number, "resources": resources})


def memory_of_gpus() -> list[int]:
    """Bytes of each GPU of this node, as its driver tells; empty if there is none, or if one is cut up (MIG)."""
    command = ["nvidia-smi", "--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30).stdout  # noqa: S603
        pairs = [line.split(",") for line in told.splitlines() if line.strip()]
        return [] if any("Enabled" in mode for _, mode in pairs) else [int(size) * _MIB for size, _ in pairs]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _model_of(spec: JobSpec) -> fit.Model | None:
    """The model's size as it is loaded, under s3:// as it is stored; None if it cannot be told."""
    with suppress(Exception):  # whatever it is, loading the model will tell
        if not spec.model.startswith("s3://"):
            return fit.read(spec, weights.local_folder(spec.model), spec.engine.to_kwargs())
        files, root = storage.filesystem(spec.model)
        found = [file for file in storage.list_files([spec.model]) if file.path.endswith(".safetensors")]
        with files.open_input_stream(f"{root.rstrip('/')}/config.json") as stream:
            config = json.loads(stream.read())
        return fit.Model(sum(file.num_bytes for file in found), config) if found else None
    return None


def share_of_memory(spec: JobSpec) -> dict[str, Any]:
    """Engine arguments by which one of several engines on a GPU takes no more than its share of the memory.

    The size of the KV cache is told, as vLLM's own measuring takes the other engines' memory for its own.

    Raises:
        EngineError: nothing is left for a KV cache.
    """
    number = spec.resources.engines
    if number == 1:
        return {}
    options = spec.engine.to_kwargs()
    utilization = float(options.get("gpu_memory_utilization", _UTILIZATION)) / number
    share: dict[str, Any] = {"gpu_memory_utilization": utilization}
    memory, model = memory_of_gpus(), _model_of(spec)
    if "kv_cache_memory_bytes" in options:
        share["kv_cache_memory_bytes"] = int(options["kv_cache_memory_bytes"]) // number
    elif memory:
        usable = min(memory) * utilization
        left = _cache(usable, model.num_bytes) if model else _UNKNOWN_CACHE_SHARE * usable
        if left <= 0:
            msg = (
                f"resources.engines_per_gpu: {number} engines on a GPU have {usable / 1e9:.1f} GB each, which does not "
                f"hold the model's weights; lower it"
            )
            raise EngineError(msg)
        share["kv_cache_memory_bytes"] = int(left)
    return share
