"""Whether a model's weights fit into the GPUs of a replica, told before they are loaded, where it is certain.

Only a lower bound counts: weights that vLLM may leave out, shrink or keep elsewhere make no judgement, and a model that
is a little too large is left to vLLM. Whatever goes wrong here is no reason for a job to end.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayferry.job import weights
from rayferry.job.errors import EngineError
from rayferry.job.spec import JobSpec

_GIB = 1 << 30
_HUB_LIMIT_S = 5.0
_MAX_HEADER_BYTES = 100 << 20  # the format's own
_FLOATS = {"F64", "F32", "F16", "BF16"}  # these are cast to the engine's dtype
_BYTES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # of others only that they are
# With one of these set, what is stored is not what is loaded.
_CHANGE_WEIGHTS = {"quantization", "quantization_config", "hf_overrides", "model_loader_extra_config", "model_impl"}
_CERTAIN = 0.9  # of the stored weights at least are loaded: some models have layers that vLLM leaves out
_ROOM = 0.85  # of the memory is for the weights, if there is to be a KV cache worth having
_MOST_PARALLEL = 64


@dataclass(frozen=True)
class Gpu:
    """What a replica may use of each of its GPUs.

    Attributes:
        num_bytes: its memory.
        share: of it, that vLLM may use.
    """

    num_bytes: int
    share: float

    @property
    def usable(self) -> float:
        """Bytes."""
        return self.num_bytes * self.share


@dataclass(frozen=True)
class Model:
    """A checkpoint, as far as its size goes.

    Attributes:
        num_bytes: its weights, in the dtype that they are loaded in.
        config: its config.json.
    """

    num_bytes: float
    config: Mapping[str, Any]

    @property
    def is_plain(self) -> bool:
        """True if vLLM loads all of it, but for a few layers: a text model."""
        names = self.config.get("architectures") or [""]
        parts = [key for key, value in self.config.items() if key.endswith("_config") and isinstance(value, dict)]
        return str(names[0]).endswith("ForCausalLM") and set(parts) <= {"quantization_config"}

    def cache_bytes(self, max_model_len: int | None) -> int | None:
        """Bytes of the KV cache that one sequence of that length needs, 2 a number; None: its config does not tell."""
        its = self.config
        heads, layers = its.get("num_attention_heads"), its.get("num_hidden_layers")
        length = max_model_len or its.get("max_position_embeddings")
        if not heads or not layers or not length or not (its.get("head_dim") or its.get("hidden_size")):
            return None
        width = its.get("head_dim") or its["hidden_size"] // heads
        return int(2 * 2 * layers * (its.get("num_key_value_heads") or heads) * width * length)

    def can_split(self, size: int) -> bool:
        """True if tensor parallelism over so many GPUs divides its layers."""
        heads = int(self.config.get("num_attention_heads") or 0)
        pairs = int(self.config.get("num_key_value_heads") or heads)
        if not heads or heads % size or int(self.config.get("intermediate_size") or 0) % size:
            return False
        return pairs % size == 0 or size % pairs == 0


def check(spec: JobSpec, folder: str, options: Mapping[str, Any], ask_gpu: Callable[[], Gpu | None]) -> None:
    """Refuses a model that cannot fit into the GPUs of this node.

    Args:
        spec: the job.
        folder: where the model is here, or its hub id.
        options: the engine's arguments.
        ask_gpu: gives this node's GPU, if it can be known.

    Raises:
        EngineError: with the numbers, and the `tensor_parallel_size` that would hold it.
    """
    told = ""
    with suppress(Exception):  # a fault of the look is none of the job
        gpu, model = ask_gpu(), read(spec, folder, options)
        if gpu and model:
            told = judge(spec, model, gpu)
    if told:
        raise EngineError(told)


def sizes(spec: JobSpec, ask_gpu: Callable[[], Gpu | None]) -> str:
    """The numbers of a model that could not be loaded, in a sentence; "" if they cannot be had."""
    with suppress(Exception):
        gpu, model = ask_gpu(), read(spec, weights.local_folder(spec.model), spec.engine.to_kwargs())
        if gpu and model:
            told = _told(spec, model, gpu)
            return f"{told[0].upper()}{told[1:]}. "
    return ""


def judge(spec: JobSpec, model: Model, gpu: Gpu) -> str:
    """Why the model cannot fit, and what would hold it; "" if it may."""
    stages = spec.engine.pipeline_parallel_size
    if not model.is_plain or _CERTAIN * model.num_bytes / spec.engine.world_size <= gpu.usable:
        return ""
    sizes = range(spec.engine.tensor_parallel_size + 1, _MOST_PARALLEL + 1)
    fits = (size for size in sizes if model.num_bytes / (size * stages) <= _ROOM * gpu.usable)
    size = next((size for size in fits if model.can_split(size)), None)
    told = f"model {spec.model!r} does not fit: {_told(spec, model, gpu)}"
    if size is None:
        return f"{told}; take larger GPUs, a quantized model, or a larger engine.pipeline_parallel_size (now {stages})"
    return f"{told}; engine.tensor_parallel_size: {size} would hold it ({size * stages} x {_gib(gpu.usable)})"


def _told(spec: JobSpec, model: Model, gpu: Gpu) -> str:
    several = spec.engine.world_size
    has = f"a GPU here has {_gib(gpu.num_bytes)}, of which {gpu.share:g} may be used: {_gib(gpu.usable)}"
    if several > 1:
        has += f", {_gib(several * gpu.usable)} on {several} GPUs"
    return f"its weights have {_gib(model.num_bytes)}, {has}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"


def read(spec: JobSpec, folder: str, options: Mapping[str, Any]) -> Model | None:
    """The model's size; None if it cannot be known, or if its weights are changed or left out as they are loaded."""
    changed = _CHANGE_WEIGHTS & options.keys() or any("offload" in key for key in options)
    if changed or options.get("load_format", "auto") not in {"auto", "safetensors"}:
        return None
    stored = _stored_in(Path(folder)) if Path(folder).is_dir() else _stored_on_hub(folder, spec.revision)
    if stored is None:
        return None
    counts, config = stored
    width = 4 if options.get("dtype") in {"float32", "float"} else 2
    num_bytes = sum(num * (width if kind in _FLOATS else _BYTES.get(kind, 0)) for kind, num in counts.items())
    return Model(num_bytes, config) if num_bytes else None


def _stored_in(folder: Path) -> tuple[dict[str, int], dict[str, Any]] | None:
    """Numbers of a checkpoint by their dtype, and its config; None if it has no safetensors, or too many."""
    config = json.loads((folder / "config.json").read_bytes())
    index = folder / "model.safetensors.index.json"
    names = {path.name for path in folder.glob("*.safetensors")}
    if index.exists():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    elif "model.safetensors" in names:
        names = {"model.safetensors"}
    if not names or any(name.startswith("consolidated") for name in names):
        return None  # the same weights in another form may be beside them
    return count(folder / name for name in names), config


def count(paths: Iterable[Path]) -> dict[str, int]:
    """Numbers in safetensors files by their dtype, from their headers alone.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    found: dict[str, int] = {}
    for path in paths:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
        for name, tensor in header.items():
            if name != "__metadata__":
                found[tensor["dtype"]] = found.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return found


def _stored_on_hub(model: str, revision: str | None) -> tuple[dict[str, int], dict[str, Any]] | None:
    """The same of a model of the hub: of its copy here if there is one, else as the hub tells it."""
    import huggingface_hub  # noqa: PLC0415  # vLLM brings it along
    from huggingface_hub.constants import HF_HUB_OFFLINE  # noqa: PLC0415

    with suppress(OSError, ValueError):
        found = _stored_in(Path(huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True)))
        if found is not None:
            return found
    if HF_HUB_OFFLINE:
        return None
    told = huggingface_hub.HfApi().model_info(model, revision=revision, timeout=_HUB_LIMIT_S)
    path = huggingface_hub.hf_hub_download(model, "config.json", revision=revision, etag_timeout=_HUB_LIMIT_S)
    return (dict(told.safetensors.parameters), json.loads(Path(path).read_bytes())) if told.safetensors else None
