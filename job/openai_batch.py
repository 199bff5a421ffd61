"""Lines of OpenAI batch files: requests as the engine is asked them, and results in OpenAI's form.

Source: https://platform.openai.com/docs/api-reference/batch, and vLLM's server for its further parameters.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rayferry.job.explain import explain
from rayferry.job.prompts import is_token_ids, messages
from rayferry.job.rows import RowError, json_text
from rayferry.job.sampling import SamplingSpec
from rayferry.job.spec import GENERATING

if TYPE_CHECKING:
    from rayferry.job.spec import JobSpec

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
URLS = (CHAT, COMPLETIONS, EMBEDDINGS)
# names that OpenAI's bodies, vLLM's SamplingParams and ours share
_SAMPLING = {
    "n", "temperature", "top_p", "top_k", "min_p", "min_tokens", "stop", "stop_token_ids", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "ignore_eos", "bad_words", "allowed_token_ids", "logit_bias",
    "skip_special_tokens", "include_stop_str_in_output", "structured_outputs",
}  # fmt: skip
# what changes nothing in an answer; `model` is the job's
_IGNORED = {"model", "user", "store", "metadata", "service_tier", "stream_options", "parallel_tool_calls",
            "safety_identifier", "prompt_cache_key", "request_id", "priority", "best_of"}  # fmt: skip
_TEMPLATE = {"chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"}
_KNOWN = {
    CHAT: {*_SAMPLING, *_IGNORED, *_TEMPLATE, "messages", "max_tokens", "max_completion_tokens", "logprobs",
           "top_logprobs", "response_format", "tools", "tool_choice", "reasoning_effort", "stream", "documents"},
    COMPLETIONS: {*_SAMPLING, *_IGNORED, "prompt", "max_tokens", "logprobs", "response_format", "stream", "echo"},
    EMBEDDINGS: {*_IGNORED, "input", "dimensions", "encoding_format"},
}  # fmt: skip
_COMPLETION_TOKENS = 16  # OpenAI's own default for completions


class BatchLines:
    """Turns lines of OpenAI batch files into what the engine is asked, for one job."""

    def __init__(self, spec: "JobSpec") -> None:
        self._task = spec.task
        self._sampling = spec.sampling.model_dump(include=spec.sampling.model_fields_set, by_alias=True)
        self._parser = spec.chat.tool_call_parser
        self._adapters = spec.lora.adapters if spec.lora else {}

    @staticmethod
    def id_of(record: Mapping[str, Any]) -> str:
        """The line's `custom_id`.

        Raises:
            RowError: it has none.
        """
        value = record.get("custom_id")
        if not isinstance(value, str) or not value:
            raise RowError("parse", "MissingId", "custom_id is not there, or not text")
        return value

    def __call__(self, record: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The prompt as people read it, and the request.

        Raises:
            RowError: the line cannot be asked.
        """
        url, body = record.get("url"), record.get("body")
        if url not in URLS:
            raise RowError("parse", "UnsupportedUrl", f"url is {url!r}; there are: {', '.join(URLS)}")
        if record.get("method", "POST") != "POST":
            raise RowError("parse", "BadMethod", f"method is {record['method']!r}; it must be POST")
        if not isinstance(body, dict):
            raise RowError("parse", "BadBody", f"body is {type(body).__name__}, not an object")
        if (url == EMBEDDINGS) != (self._task == "embed") or (url != EMBEDDINGS and self._task not in GENERATING):
            needed = "embed" if url == EMBEDDINGS else "generate (or chat)"
            raise RowError("parse", "WrongTask", f"url {url} needs task: {needed}; this job's is {self._task}")
        body = {name: value for name, value in body.items() if value is not None}
        unknown = body.keys() - _KNOWN[url]
        if unknown:
            raise RowError(
                "parse", "UnsupportedParameter", f"body has {', '.join(sorted(unknown))}, not supported here"
            )
        if body.get("stream") or body.get("echo"):
            name = "stream" if body.get("stream") else "echo"
            raise RowError("parse", "UnsupportedParameter", f"{name}: true is not possible in a batch")
        request: dict[str, Any] = {"openai": {"url": url}}
        if isinstance(body.get("model"), str) and body["model"] in self._adapters:
            request["adapter"] = body["model"]
        if url == CHAT:
            return self._chat(body, request)
        prompts = _prompts(body.get("prompt" if url == COMPLETIONS else "input"))
        request["prompts"] = prompts
        if url == COMPLETIONS:
            body.setdefault("max_tokens", self._sampling.get("max_tokens", _COMPLETION_TOKENS))
            request["sampling"] = self._params(body, body.get("logprobs"))
            request["openai"]["logprobs"] = body.get("logprobs")
        else:
            request["dimensions"] = _dimensions(body.get("dimensions"))
            request["openai"]["base64"] = body.get("encoding_format") == "base64"
        return prompts[0] if len(prompts) == 1 and isinstance(prompts[0], str) else json_text(prompts), request

    def _chat(self, body: dict[str, Any], request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        request["messages"] = messages(body.get("messages"), "messages")
        chat = {name: body[name] for name in _TEMPLATE if name in body}
        kwargs = {name: body[name] for name in ("reasoning_effort", "documents") if name in body}
        if not isinstance(chat.get("chat_template_kwargs") or {}, dict):
            raise RowError("parse", "BadBody", "chat_template_kwargs is not an object")
        if kwargs:
            chat["chat_template_kwargs"] = kwargs | dict(chat.get("chat_template_kwargs") or {})
        choice = body.get("tool_choice", "auto" if body.get("tools") else "none")
        if body.get("tools"):
            chat["tools"] = body["tools"]
            constraint = self._tools(body["tools"], choice)
            if constraint:
                body["structured_outputs"] = constraint
            request["openai"]["tool_choice"] = choice
        request["chat"] = chat
        limit = body.get("max_completion_tokens", body.get("max_tokens", self._sampling.get("max_tokens")))
        num_logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
        request["sampling"] = self._params(body | {"max_tokens": limit}, num_logprobs)
        request["openai"]["logprobs"] = num_logprobs
        return json_text(request["messages"]), request

    def _params(self, body: Mapping[str, Any], num_logprobs: int | None) -> dict[str, Any]:
        given = {name: body[name] for name in _SAMPLING if name in body}
        given["max_tokens"] = body["max_tokens"]
        if body.get("stop") == []:
            del given["stop"]
        constraint = _constraint(body.get("response_format"))
        if constraint is not None:
            given["structured_outputs"] = constraint
        if num_logprobs is not None:
            given["logprobs"] = num_logprobs
        try:
            spec = SamplingSpec.model_validate({**self._sampling, **given})
        except ValidationError as error:
            lines = explain(error.errors(include_url=False), SamplingSpec)
            raise RowError("parse", "BadSampling", "body: " + "; ".join(lines)) from error
        return spec.to_kwargs()

    def _tools(self, tools: Any, choice: Any) -> dict[str, Any] | None:
        """The form that a forced call must have; None if the model is free to call or not."""
        try:
            functions = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        except (TypeError, KeyError, AttributeError) as error:
            raise RowError("parse", "BadTools", "tools must be a list of {type: function, function: {name}}") from error
        if not all(isinstance(parameters, dict) for parameters in functions.values()):
            raise RowError("parse", "BadTools", "a tool's parameters are not a JSON Schema")
        if choice == "none":
            return None
        if choice == "auto":
            if self._parser is None:
                raise RowError("parse", "NoToolParser", "tool_choice auto needs chat.tool_call_parser in the job file")
            return None
        if choice == "required":
            calls = [
                {
                    "type": "object",
                    "properties": {"name": {"type": "string", "enum": [name]}, "parameters": parameters},
                    "required": ["name", "parameters"],
                }
                for name, parameters in functions.items()
            ]
            return {"json": {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}}
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in functions:
            raise RowError("parse", "BadToolChoice", f"tool_choice names {name!r}, which is none of the tools")
        return {"json": functions[name]}


def _prompts(value: Any) -> list[Any]:
    """Texts or lists of token ids; one alone is a list of one."""
    if (isinstance(value, str) and value) or is_token_ids(value):
        return [value]
    if isinstance(value, list) and value and all((isinstance(v, str) and v) or is_token_ids(v) for v in value):
        return value
    raise RowError("parse", "BadPrompt", "the prompt is empty, or neither text, token ids, nor a list of these")


def _dimensions(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise RowError("parse", "BadBody", f"dimensions is {str(value)[:80]!r}, not a whole number above 0")
    return value


def _constraint(response_format: Any) -> dict[str, Any] | None:
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        form = response_format.get("json_schema")
        schema = form.get("schema") if isinstance(form, dict) else None
        if isinstance(schema, dict):
            return {"json": schema}
        raise RowError("parse", "BadResponseFormat", "response_format.json_schema.schema is not an object")
    raise RowError("parse", "BadResponseFormat", f"response_format.type is {kind!r}; text, json_object or json_schema")


def result_line(row_id: str, custom_id: str | None, response: str | None, error: Mapping[str, str] | None) -> str:
    """One line of openai/*.jsonl; `response` is the body as JSON text."""
    head = f'{{"id": {json_text("batch_req_" + row_id)}, "custom_id": {json_text(custom_id)}, '
    if error is not None:
        told = json_text({"code": error["error_type"], "message": error["error"]})
        return head + f'"response": null, "error": {told}}}'
    return (
        head
        + f'"response": {{"status_code": 200, "request_id": {json_text(row_id)}, "body": {response}}}, "error": null}}'
    )


def usage(num_input: int, num_generated: int | None = None) -> dict[str, int]:
    """Token counts in OpenAI's form."""
    if num_generated is None:
        return {"prompt_tokens": num_input, "total_tokens": num_input}
    return {
        "prompt_tokens": num_input,
        "completion_tokens": num_generated,
        "total_tokens": num_input + num_generated,
    }


def chat_logprobs(logprobs: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """The answers' log probabilities as chat completions have them."""
    if logprobs is None:
        return None
    return {"content": [_told(one) | {"top_logprobs": [_told(other) for other in one["top"]]} for one in logprobs]}


def completion_logprobs(logprobs: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """The same as completions have them."""
    if logprobs is None:
        return None
    offsets, at = [], 0
    for one in logprobs:
        offsets.append(at)
        at += len(one["token"])
    return {
        "text_offset": offsets,
        "token_logprobs": [_finite(one["logprob"]) for one in logprobs],
        "tokens": [one["token"] for one in logprobs],
        "top_logprobs": [{other["token"]: _finite(other["logprob"]) for other in one["top"]} for one in logprobs],
    }


def _told(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "token": one["token"],
        "logprob": _finite(one["logprob"]),
        "bytes": list(one["token"].encode(errors="replace")),
    }


def _finite(logprob: float) -> float:
    """JSON has no form for minus infinity.

    Source: vllm/entrypoints/openai/chat_completion/serving.py
    """
    return max(logprob, -9999.0)
