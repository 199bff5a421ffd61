"""vLLM's engine for a job, loaded; and what to tell of one that cannot be.

Only this module, `base_engine`, `generating` and `pooling` import vllm.
"""

import inspect
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayferry.job import arguments, fit, sharing, weights
from rayferry.job.errors import EngineError
from rayferry.job.generating import GeneratingEngine
from rayferry.job.pooling import PoolingEngine
from rayferry.job.prepared import in_place_of_spawn, serve, spawn
from rayferry.job.spec import GENERATING, JobSpec

_GIB = 1 << 30
# Ranks that vLLM has kernels for.
# Source: https://docs.vllm.ai/en/latest/api/vllm/config/lora.html
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def load(spec: JobSpec, device: str) -> GeneratingEngine | PoolingEngine:
    """The engine for a job, its model loaded.

    Raises:
        EngineError: vllm is not there, does not have an engine argument or refuses its value; or the model is larger
            than the GPUs' memory.
        Exception: whatever else vLLM has to say of the model.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    options = spec.engine.to_kwargs()
    if device == "cpu":
        # A second process would take the engine's start from half a minute to a whole one on few cores.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, min(4, memory // (4 * _GIB)))))
    else:
        _keep_kernels()
        options |= sharing.share_of_memory(spec)
        if spec.engine.world_size > 1:
            options["distributed_executor_backend"] = "mp"  # the GPUs are this process's; vLLM would take Ray's workers
    if spec.task not in GENERATING:
        options.setdefault("runner", "pooling")
    if (known := arguments.known()) is not None:
        known.check(options)
    adapters = {name: weights.local_folder(uri) for name, uri in spec.lora.adapters.items()} if spec.lora else {}
    if adapters:
        options = {"enable_lora": True, "max_lora_rank": _rank(adapters.values())} | options
    model = weights.local_folder(spec.model)
    context = _context(options) if device == "gpu" else None
    try:
        import vllm  # noqa: PLC0415  # only the cluster's nodes have it, and it takes seconds
    except ImportError as error:
        msg = (
            f"vllm cannot be imported on this node ({error}); "
            "use an image that holds it, or add it to runtime_env.pip in the job file"
        )
        raise EngineError(msg) from error
    try:
        if device == "gpu":
            fit.check(spec, model, options, lambda: _gpu(options))
        with in_place_of_spawn(context):
            llm = vllm.LLM(model=model, revision=spec.revision, **options)
    except ValidationError as error:
        raise EngineError(arguments.refused(error, options, str(vllm.__version__))) from error
    kind = GeneratingEngine if spec.task in GENERATING else PoolingEngine
    return kind(llm, spec, adapters, device)


def _keep_kernels() -> None:
    """Has Triton keep kernels where it does by default, for all loads of a model on this node.

    Where torch.compile compiles it has them put elsewhere, but not where it finds its own cache: the second load would
    compile all of vLLM's kernels again, which takes some 20 s.
    Source: torch/_inductor/runtime/triton_heuristics.py (2.11 and 2.13)
    """
    folder = Path(os.path.expanduser(os.environ.get("TRITON_HOME", "~"))) / ".triton/cache"  # noqa: PTH111  # as Triton
    with suppress(OSError):  # a home that cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            os.environ.setdefault("TRITON_CACHE_DIR", str(folder))


def _context(options: Mapping[str, Any]) -> BaseContext:
    """How vLLM's processes come to be in place of being spawned."""
    is_spawned = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0" or options.get("numa_bind")
    return spawn() if is_spawned else serve()


def is_about_memory(reason: str) -> bool:
    """True if a reason not to start says, or may hide, that memory ran out."""
    words = ("memory", "cache blocks", "kv cache", "engine core initialization failed")
    return any(word in reason.lower() for word in words)


def was_killed(reason: str) -> bool:
    """True if a reason not to start is that a signal ended the engine's own process.

    Source: `wait_for_engine_startup` in vllm/v1/engine/utils.py (0.32), which tells the exit codes.
    """
    return re.search(r"Failed core proc\(s\): .*: -\d", reason) is not None


def advice(spec: JobSpec, device: str, limits: dict[str, Any]) -> str:
    """What to change if memory ran out, with the values of now.

    Args:
        spec: the job.
        device: `gpu` or `cpu`.
        limits: what the loaded engine has for keys of `engine` that the job may not set.
    """
    given = spec.engine.to_kwargs()

    def now(key: str, default: str) -> str:
        return f"engine.{key} (now {given.get(key, limits.get(key, default))})"

    few = f"{now('max_num_seqs', 'the default of vLLM')} or {now('max_model_len', 'as long as the model can')}"
    if device == "cpu":
        return f"If memory ran out: lower {few}, or replicas (now {spec.max_replicas})."
    replicas = f"replicas (now {spec.max_replicas // spec.resources.engines})"
    if spec.resources.engines > 1:
        replicas += f", or resources.engines_per_gpu (now {spec.resources.engines})"
    share = now("gpu_memory_utilization", "the default of vLLM, 0.9 or 0.92")
    more = f"engine.tensor_parallel_size (now {spec.engine.tensor_parallel_size})"
    return (
        f"If a GPU's memory ran out: lower {few}; lower {share} if it ran out while the engine worked or if others use "
        f"the GPU, raise it if vLLM had too little for its KV cache; or raise {more}. "
        f"If a node's memory ran out: lower {replicas}."
    )


def sizes(spec: JobSpec, device: str) -> str:
    """The model's size and the GPU's in a sentence, for a load that ran out of memory; "" if they cannot be had."""
    return fit.sizes(spec, lambda: _gpu(spec.engine.to_kwargs())) if device == "gpu" else ""


def _gpu(options: dict[str, Any]) -> fit.Gpu | None:
    """This node's GPU, asked without taking memory of it or beginning to use CUDA in this process."""
    import vllm  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415

    if not current_platform.is_cuda():
        return None
    default = inspect.signature(vllm.LLM.__init__).parameters["gpu_memory_utilization"].default
    # with kv_cache_memory_bytes set, vLLM does not look at the share
    share = 1.0 if "kv_cache_memory_bytes" in options else options.get("gpu_memory_utilization", default)
    return fit.Gpu(int(current_platform.get_device_total_memory()), float(share))


def _rank(folders: Any) -> int:
    """The least rank that vLLM has a kernel for and that holds all adapters."""
    ranks = [16]
    for folder in folders:
        path = Path(folder) / "adapter_config.json"
        if path.exists():
            ranks.append(int(json.loads(path.read_text())["r"]))
    return next((rank for rank in _LORA_RANKS if rank >= max(ranks)), max(ranks))
