"""What engines share: adapters, the room for a prompt, and what vLLM's refusals mean. Imports vllm where it is used."""

from collections.abc import Callable
from typing import Any

from rayferry.job.calls import Call
from rayferry.job.spec import JobSpec


class BaseEngine:
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
