"""The job file's `engine`: arguments of vLLM's engine."""

import difflib
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from rayferry.job import leaks
from rayferry.job.typed import Typed

# Engine arguments people write most. Only used to catch a misspelt key: other keys go to vLLM as they are.
# Source: https://docs.vllm.ai/en/latest/configuration/engine_args.html
COMMON_ENGINE_KEYS = (
    "async_scheduling",
    "block_size",
    "compilation_config",
    "cpu_offload_gb",
    "data_parallel_size",
    "data_parallel_size_local",
    "disable_log_stats",
    "distributed_executor_backend",
    "dtype",
    "enable_chunked_prefill",
    "enable_expert_parallel",
    "enable_lora",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "hf_overrides",
    "hf_token",
    "kv_cache_dtype",
    "limit_mm_per_prompt",
    "load_format",
    "max_lora_rank",
    "max_loras",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "mm_processor_kwargs",
    "pipeline_parallel_size",
    "quantization",
    "seed",
    "served_model_name",
    "speculative_config",
    "tensor_parallel_size",
    "tokenizer",
    "tokenizer_mode",
    "tokenizer_revision",
    "trust_remote_code",
)


class EngineSpec(Typed):
    """Engine arguments: three that Rayferry reads itself; every further key goes to vLLM as it is."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, hide_input_in_errors=True)

    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that one replica splits each layer over")
    pipeline_parallel_size: int = Field(1, ge=1, description="stages of GPUs that one replica is cut into")
    max_num_seqs: int | None = Field(None, ge=1, description="sequences that one engine runs together")

    @model_validator(mode="after")
    def _no_near_misses(self) -> "EngineSpec":
        known = {*COMMON_ENGINE_KEYS, *type(self).model_fields}
        for key, value in (self.model_extra or {}).items():
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if key == "hf_token" or (isinstance(value, str) and leaks.is_secret_name(key)):
                msg = f"{key!r}: {leaks.ADVICE}"
                raise ValueError(msg)
            if key in {"model", "revision"}:
                msg = f"{key!r} is set at the top level of the job file, not under engine"
                raise ValueError(msg)
            runs_workers = (None, "mp") if self.world_size > 1 else (None, "mp", "uni")
            if key == "distributed_executor_backend" and value not in runs_workers:  # a tuple: it may be any type
                msg = f"{key!r}: vLLM's workers are processes of the replica ('mp'): leave it out"
                raise ValueError(msg)
            if near and key not in known:
                msg = f"unknown key {key!r}; did you mean {near[0]!r}?"
                raise ValueError(msg)
        return self

    @property
    def world_size(self) -> int:
        """GPUs that one replica needs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `vllm.LLM`."""
        return self.model_dump(exclude_none=True)
