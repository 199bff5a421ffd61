"""vLLM's engine for the tasks `generate` and `chat`."""

from typing import Any

from rayferry.job.base_engine import BaseEngine, stage_of
from rayferry.job.calls import Call
from rayferry.job.pump import RefusedError
from rayferry.job.spec import JobSpec

_LEAST_WAITING = 8


class GeneratingEngine(BaseEngine):
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
