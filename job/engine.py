"""vLLM, as the pump steps it. The only module that imports vllm; what differs between its versions is here."""

import inspect
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayferry.job import arguments, fit, sharing, weights
from rayferry.job.calls import Call
from rayferry.job.errors import EngineError
from rayferry.job.prepared import spawned_processes
from rayferry.job.pump import RefusedError, Settled
from rayferry.job.spec import GENERATING, JobSpec

_GIB = 1 << 30
_POOLED_TOGETHER = 256
_LEAST_WAITING = 8
# Ranks that vLLM has kernels for.
# Source: https://docs.vllm.ai/en/latest/api/vllm/config/lora.html
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def load(spec: JobSpec, device: str) -> "GeneratingEngine | PoolingEngine":
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
    elif spec.engine.world_size == 1:
        options = sharing.share_of_memory(spec) | options
    else:
        # Workers of the engine are Ray actors in this replica's placement group.
        options.setdefault("distributed_executor_backend", "ray")
    if spec.task not in GENERATING:
        options.setdefault("runner", "pooling")
    if (known := arguments.known()) is not None:
        known.check(options)
    adapters = {name: weights.local_folder(uri) for name, uri in spec.lora.adapters.items()} if spec.lora else {}
    if adapters:
        options = {"enable_lora": True, "max_lora_rank": _rank(adapters.values())} | options
    model = weights.local_folder(spec.model)
    with spawned_processes() if device == "gpu" and spec.engine.world_size == 1 else nullcontext():
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
            llm = vllm.LLM(model=model, revision=spec.revision, **options)
        except ValidationError as error:
            raise EngineError(arguments.refused(error, options, str(vllm.__version__))) from error
    kind = GeneratingEngine if spec.task in GENERATING else PoolingEngine
    return kind(llm, spec, adapters, device)


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
    share = now("gpu_memory_utilization", "the default of vLLM, 0.9 or 0.92")
    more = f"engine.tensor_parallel_size (now {spec.engine.tensor_parallel_size})"
    return (
        f"If a GPU's memory ran out: lower {few}; lower {share} if it ran out while the engine worked or if others use "
        f"the GPU, raise it if vLLM had too little for its KV cache; or raise {more}. "
        f"If a node's memory ran out: lower replicas (now {spec.max_replicas})."
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


class _Base:
    """What both kinds share: adapters, the room for a prompt, and what a refusal means."""

    def __init__(self, llm: Any, spec: JobSpec, adapters: dict[str, str], device: str) -> None:
        import vllm  # noqa: PLC0415
        from vllm.lora.request import LoRARequest  # noqa: PLC0415
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415

        self.version = str(vllm.__version__)
        self._dead_error = EngineDeadError
        self._llm = llm
        self._spec = spec
        self._mixes = device == "gpu"
        self.limits = _limits(llm.llm_engine)
        self._max_model_len = int(llm.llm_engine.model_config.max_model_len)
        self._lora = {name: LoRARequest(name, at, path) for at, (name, path) in enumerate(adapters.items(), start=1)}
        self._side = spec.on_error.prompt_too_long.partition("_")[2] or None

    def _adapter(self, call: Call) -> Any:
        name = call.adapter or (self._spec.lora.default if self._spec.lora else None)
        if name is None and self._lora and not self._mixes:
            # seen in 0.32: in one step with others, a prompt without an adapter is answered with one of theirs
            msg = "vLLM on CPUs mixes up prompts with and without an adapter; name one for every row, or lora.default"
            raise ValueError(msg)
        return self._lora[name] if name is not None else None

    def _truncation(self, room: int) -> dict[str, Any]:
        return {"truncate_prompt_tokens": max(1, self._max_model_len - room), "truncation_side": self._side}

    def tool_parser(self) -> Callable[[str, dict[str, Any]], tuple[str | None, list[dict[str, Any]]]] | None:
        """What finds calls of tools in an answer, if the job names vLLM's parser for it.

        Raises:
            KeyError: vLLM has no parser of that name.
        """
        name = self._spec.chat.tool_call_parser
        if name is None:
            return None
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: PLC0415
        from vllm.tool_parsers import ToolParserManager  # noqa: PLC0415

        kind = ToolParserManager.get_tool_parser(name)
        tokenizer = self._llm.get_tokenizer()

        def parse(text: str, chat: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]]]:
            request = ChatCompletionRequest(messages=[], tools=chat.get("tools"))
            found = kind(tokenizer, request.tools).extract_tool_calls(text, request)
            calls = [
                {"name": tool.function.name, "arguments": tool.function.arguments} for tool in found.tool_calls or []
            ]
            return found.content, calls

        return parse


class GeneratingEngine(_Base):
    """`vllm.LLM` for the pump: its own requests queue and its engine's steps, as `LLM.generate` uses them.

    `room` and `cache_tokens`: see `pump.Engine`.

    The same code renders, tokenises and samples as there, so greedy answers are the same token for token.
    Source: https://docs.vllm.ai/en/latest/api/vllm/entrypoints/llm.html (enqueue, enqueue_chat, llm_engine)
    """

    def __init__(self, llm: Any, spec: JobSpec, adapters: dict[str, str], device: str) -> None:
        super().__init__(llm, spec, adapters, device)
        self._kwargs = spec.sampling.to_kwargs()
        self._params = self._sampling_params(self._kwargs)
        self._model_defaults: dict[str, Any] | None = None
        cache = llm.llm_engine.vllm_config.cache_config
        self.cache_tokens = (cache.num_gpu_blocks or 0) * (cache.block_size or 0) or None
        seqs = self.limits.get("max_num_seqs")
        # some more than run together, so that the scheduler finds the next one whenever one ends
        self.room = seqs and max(1, (seqs + max(_LEAST_WAITING, seqs // 8)) // (spec.sampling.n or 1))

    def tokens_of(self, call: Call) -> int:
        """The most tokens that a call may generate. See `pump.Engine`."""
        kwargs = call.sampling or self._kwargs
        return (kwargs.get("max_tokens") or self._max_model_len) * (kwargs.get("n") or 1)

    def add(self, call: Call) -> str:
        """Queues a request and gives its id. See `pump.Engine`."""
        try:
            try:
                ids = self._enqueue(call, None)
            except self._dead_error:
                raise
            except Exception as error:
                if self._side is None or stage_of(error) != "length":
                    raise
                half = self._max_model_len // 2
                wanted = (call.sampling or self._kwargs).get("max_tokens") or half
                ids = self._enqueue(call, self._truncation(min(wanted, half)))
        except self._dead_error:
            raise
        except Exception as error:
            raise RefusedError(stage_of(error)) from error
        # The id inside the engine is "<counter>-<random>"; outputs carry the counter alone.
        return str(ids[0]).partition("-")[0]

    def step(self) -> list[Any]:
        """Runs one iteration. See `pump.Engine`."""
        return list(self._llm.llm_engine.step())

    def is_busy(self) -> bool:
        """True while there are unfinished requests."""
        return bool(self._llm.llm_engine.has_unfinished_requests())

    def abort(self, request_id: str) -> None:
        """Drops a request. See `pump.Engine`."""
        self._llm.llm_engine.abort_request([request_id])

    def _enqueue(self, call: Call, truncation: dict[str, Any] | None) -> list[str]:
        params = self._params_of(call)
        options = {"lora_request": self._adapter(call), "use_tqdm": False, "tokenization_kwargs": truncation}
        its = self._spec.chat
        if call.messages is not None or (self._spec.task == "chat" and not call.model_defaults):
            template = {
                "chat_template": its.chat_template,
                "add_generation_prompt": its.add_generation_prompt,
                "continue_final_message": its.continue_final_message,
                **(call.chat or {}),
            }
            kwargs = {**its.chat_template_kwargs, **(template.pop("chat_template_kwargs", None) or {})}
            messages = _with_images(call.messages or [{"role": "user", "content": call.prompt}], call.images)
            if its.system_prompt is not None and all(message["role"] != "system" for message in messages):
                messages = [{"role": "system", "content": its.system_prompt}, *messages]
            return list(
                self._llm.enqueue_chat(messages, params, **options, **template, chat_template_kwargs=kwargs or None)
            )
        prompt: Any = call.prompt
        if isinstance(prompt, list):
            prompt = {"prompt_token_ids": prompt}
        if call.images:
            prompt = {"prompt": prompt} if isinstance(prompt, str) else prompt
            prompt["multi_modal_data"] = {"image": list(call.images) if len(call.images) > 1 else call.images[0]}
        return list(self._llm.enqueue(prompt, params, **options))

    def _params_of(self, call: Call) -> Any:
        if call.sampling is None:
            return self._params
        kwargs = call.sampling
        if call.model_defaults:
            kwargs = self._defaults() | kwargs
        return self._sampling_params(kwargs)

    def _defaults(self) -> dict[str, Any]:
        """The model's own sampling parameters, as its generation_config has them."""
        if self._model_defaults is None:
            params = self._llm.get_default_sampling_params()
            names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            self._model_defaults = {name: getattr(params, name) for name in names}
        return self._model_defaults

    @staticmethod
    def _sampling_params(kwargs: dict[str, Any]) -> Any:
        import vllm  # noqa: PLC0415
        from vllm.sampling_params import StructuredOutputsParams  # noqa: PLC0415

        constraint = kwargs.get("structured_outputs")
        if constraint is not None:
            kwargs = kwargs | {"structured_outputs": StructuredOutputsParams(**constraint)}
        return vllm.SamplingParams(**kwargs)


class PoolingEngine(_Base):
    """`vllm.LLM` for embed, classify and score: what waits is handed over in one go, as there is nothing to stream.

    Source: https://docs.vllm.ai/en/latest/models/pooling_models/ (LLM.embed, LLM.classify, LLM.score)
    """

    def __init__(self, llm: Any, spec: JobSpec, adapters: dict[str, str], device: str) -> None:
        super().__init__(llm, spec, adapters, device)
        self._waiting: deque[tuple[str, Call]] = deque()
        self._ids = count()
        labels = getattr(llm.llm_engine.model_config.hf_config, "id2label", None) or {}
        self.labels = {int(index): str(label) for index, label in labels.items()}
        # a model that cannot do the task says so now, and not once for every row
        self._ask([Call("a", document="a", dimensions=spec.pooling.dimensions)])

    def add(self, call: Call) -> str:
        """Queues a call. See `pump.Engine`."""
        name = str(next(self._ids))
        self._waiting.append((name, call))
        return name

    def step(self) -> list[Settled]:
        """Answers what waits, up to 256 calls of one kind. See `pump.Engine`."""
        several = [self._waiting.popleft() for _ in range(min(len(self._waiting), _POOLED_TOGETHER))]
        groups: dict[tuple[Any, ...], list[tuple[str, Call]]] = {}
        for name, call in several:
            groups.setdefault((call.adapter, call.dimensions), []).append((name, call))
        return [pooled for group in groups.values() for pooled in self._answered(group)]

    def is_busy(self) -> bool:
        """True while calls wait."""
        return bool(self._waiting)

    def abort(self, request_id: str) -> None:
        """Drops a call that waits. See `pump.Engine`."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != request_id)

    def _answered(self, several: list[tuple[str, Call]]) -> Iterator[Settled]:
        """One refused call does not take the others with it: halves are tried by themselves."""
        try:
            outputs = self._ask([call for _, call in several])
        except self._dead_error:
            raise
        except Exception as error:  # noqa: BLE001  # vLLM's refusals have no common class
            if len(several) > 1:
                middle = len(several) // 2
                yield from self._answered(several[:middle])
                yield from self._answered(several[middle:])
                return
            yield self._alone(*several[0], error)
            return
        for (name, _), output in zip(several, outputs, strict=True):
            yield Settled(name, output)

    def _alone(self, name: str, call: Call, error: Exception) -> Settled:
        if self._side is not None and stage_of(error) == "length":
            try:
                return Settled(name, self._ask([call], self._truncation(0))[0])
            except self._dead_error:
                raise
            except Exception as second:  # noqa: BLE001
                error = second
        refusal = RefusedError(stage_of(error))
        refusal.__cause__ = error
        return Settled(name, refusal)

    def _ask(self, calls: list[Call], truncation: dict[str, Any] | None = None) -> list[Any]:
        options = {"use_tqdm": False, "lora_request": self._adapter(calls[0]), "tokenization_kwargs": truncation}
        prompts = [{"prompt_token_ids": c.prompt} if isinstance(c.prompt, list) else c.prompt for c in calls]
        if self._spec.task == "score":
            return list(self._llm.score(prompts, [call.document for call in calls], **options))
        if self._spec.task == "classify":
            return list(self._llm.classify(prompts, **options))
        dimensions = calls[0].dimensions or self._spec.pooling.dimensions
        if dimensions is not None:
            from vllm import PoolingParams  # noqa: PLC0415

            options["pooling_params"] = PoolingParams(dimensions=dimensions)
        return list(self._llm.embed(prompts, **options))


def _limits(loaded: Any) -> dict[str, Any]:
    """What vLLM set by itself of the keys that memory depends on, as far as this version tells."""
    config = getattr(loaded, "vllm_config", None)
    places = {
        "gpu_memory_utilization": "cache_config",
        "max_num_seqs": "scheduler_config",
        "max_num_batched_tokens": "scheduler_config",
        "max_model_len": "model_config",
    }
    found = {key: getattr(getattr(config, place, None), key, None) for key, place in places.items()}
    return {key: value for key, value in found.items() if value is not None}


def stage_of(error: BaseException) -> str:
    """Where a call failed: `template`, `tokenize`, `length` or `engine`.

    Source: vllm/renderers/params.py and vllm/v1/engine/input_processor.py (0.25.1 and 0.32)
    """
    text = str(error)
    if getattr(error, "parameter", None) in {"input_tokens", "input_text"} or any(
        words in text for words in ("maximum context length", "longer than the maximum model length")
    ):
        return "length"
    kind = type(error)
    if kind.__module__.startswith("jinja2") or "template" in text.lower():
        return "template"
    if isinstance(error, UnicodeError) or kind.__module__.startswith(("tokenizers", "transformers")):
        return "tokenize"
    return "engine"


def _with_images(messages: list[dict[str, Any]], images: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Images put before the text of the last message of the user."""
    if not images:
        return messages
    found = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not found:
        return [*messages, {"role": "user", "content": [{"type": "image_pil", "image_pil": image} for image in images]}]
    last = messages[found[-1]]
    text = last.get("content") or []
    parts = [{"type": "text", "text": text}] if isinstance(text, str) else list(text)
    parts = [*({"type": "image_pil", "image_pil": image} for image in images), *parts]
    return [*messages[: found[-1]], last | {"content": parts}, *messages[found[-1] + 1 :]]
