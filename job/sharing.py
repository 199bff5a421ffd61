"""How many engines share one GPU. One that answers a small model leaves it idle most of the time."""

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rayferry.job import fit, storage, weights
from rayferry.job.errors import root_line
from rayferry.job.placement import ACCELERATOR_PREFIX
from rayferry.job.spec import GENERATING, JobSpec

# A model is small if its weights are at most this share of the GPU's memory: (share, engines).
# Source: docs/performance.md, "Several engines on one GPU".
_SMALL = ((1 / 32, 4), (1 / 16, 2))
_MIN_ROWS_PER_ENGINE = 500  # below, an engine more costs more to load than it saves
_CPUS_PER_ENGINE = 2  # its own process and the one that feeds it
_UTILIZATION = 0.9
_CACHE_SHARE = 0.7  # of what an engine has beside its weights; the rest is for activations and CUDA graphs
_MIB = 1 << 20
_LOOK_TIMEOUT_S = 60.0
_MOST_NODES = 32  # of a large cluster, some tell for all


@dataclass(frozen=True)
class Room:
    """What there is for engines on a node with GPUs.

    Attributes:
        gpu_bytes: memory of its smallest GPU; 0 if it cannot be told.
        cpus_per_gpu: CPUs beside each GPU.
        weight_bytes: of the model; None if it cannot be told.
    """

    gpu_bytes: int
    cpus_per_gpu: float
    weight_bytes: float | None


def engines_per_gpu(room: Room, num_rows: int) -> tuple[int, str]:
    """How many engines are to share a GPU, and why.

    Args:
        room: on a node with GPUs.
        num_rows: of the input, for each GPU.
    """
    if room.weight_bytes is None or not room.gpu_bytes:
        return 1, ""
    small = next((number for share, number in _SMALL if room.weight_bytes <= share * room.gpu_bytes), 1)
    number = min(small, num_rows // _MIN_ROWS_PER_ENGINE, int(room.cpus_per_gpu // _CPUS_PER_ENGINE))
    if number <= 1:
        return 1, ""
    size = f"the model has {room.weight_bytes / 1e9:.1f} GB of weights, a GPU {room.gpu_bytes / 1e9:.0f} GB"
    return number, f"{number} engines share each GPU: {size} (resources.engines_per_gpu)"


def look(spec: JobSpec, num_gpus: float, num_cpus: float) -> Room:
    """Looks at the node that this process is on."""
    return Room(
        gpu_bytes=min(memory_of_gpus(), default=0),
        cpus_per_gpu=min(num_cpus, os.cpu_count() or 1) / max(1.0, num_gpus),
        weight_bytes=weight_bytes(spec),
    )


def chosen(spec: JobSpec, num_rows: int) -> tuple[int, str]:
    """How many engines share a GPU of the cluster that this process is connected to, and what to tell of it."""
    if spec.resources.engines_per_gpu != "auto":
        return spec.resources.engines_per_gpu, ""
    if spec.engine.world_size > 1 or spec.task not in GENERATING or num_rows < 2 * _MIN_ROWS_PER_ENGINE:
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
        return task.remote(spec, node["Resources"]["GPU"], node["Resources"].get("CPU", 0))

    try:
        rooms: list[Room] = ray.get([ask(node) for node in nodes[:_MOST_NODES]], timeout=_LOOK_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        return 1, f"one engine has a GPU: a node with GPUs cannot be looked at ({root_line(error)})"
    return min(engines_per_gpu(room, num_rows // spec.min_replicas) for room in rooms)


def with_engines(spec: JobSpec, number: int) -> JobSpec:
    """The job with a replica for each of `number` engines on every GPU."""
    replicas = spec.replicas
    if isinstance(replicas, int):
        many: Any = replicas * number
    else:
        many = replicas.model_copy(update={"min": replicas.min * number, "max": replicas.max * number})
    resources = spec.resources.model_copy(update={"engines_per_gpu": number})
    return spec.model_copy(update={"replicas": many, "resources": resources})


def memory_of_gpus() -> list[int]:
    """Bytes of each GPU of this node, as its driver tells; empty if there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30).stdout  # noqa: S603
        return [int(line) * _MIB for line in told.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def weight_bytes(spec: JobSpec) -> float | None:
    """Bytes of the model's weights as they are loaded, under s3:// as they are stored; None if they cannot be told."""
    with suppress(Exception):  # whatever it is, loading the model will tell
        if spec.model.startswith("s3://"):
            files = [file for file in storage.list_files([spec.model]) if file.path.endswith(".safetensors")]
            return sum(file.num_bytes for file in files) or None
        model = fit.read(spec, weights.local_folder(spec.model), spec.engine.to_kwargs())
        return model and model.num_bytes
    return None


def share_of_memory(spec: JobSpec) -> dict[str, Any]:
    """Engine arguments by which one of several engines on a GPU takes no more than its share of the memory.

    The size of the KV cache is told, as vLLM's own measuring takes the other engines' memory for its own.
    """
    number = spec.resources.engines
    if number == 1:
        return {}
    options = spec.engine.to_kwargs()
    utilization = float(options.get("gpu_memory_utilization", _UTILIZATION)) / number
    share: dict[str, Any] = {"gpu_memory_utilization": utilization}
    memory, size = memory_of_gpus(), weight_bytes(spec)
    if memory and size is not None and "kv_cache_memory_bytes" not in options:
        share["kv_cache_memory_bytes"] = int(_CACHE_SHARE * max(0, min(memory) * utilization - size))
    return share
