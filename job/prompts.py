"""What the engine is asked for one input row: a prompt, messages, token ids, images, and the row's own settings."""

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError

from rayferry.job.explain import explain
from rayferry.job.rows import RowError, json_text
from rayferry.job.sampling import SamplingSpec

if TYPE_CHECKING:
    from rayferry.job.spec import JobSpec

Record = Mapping[str, Any]
_MAX_NAMES = 20
_MAX_ID_CHARS = 1024


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which `meta.items` is the value under `items` before it is a method of mappings."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _printable(value: Any) -> Any:
    """What a template puts in; a null or a method is a mistake, and no prompt."""
    if value is None:
        msg = "a value is null; where that may be, write {{ column or 'something else' }}"
        raise ValueError(msg)
    if callable(value) and not isinstance(value, Undefined):
        msg = f"{value!r:.60} is no value; write {{{{ row['name'] }}}} for a column of such a name"
        raise TypeError(msg)
    return value


def compile_template(text: str) -> Template:
    """A template whose values can only be put in: a row's text is never read as a template, nor can it call anything.

    Raises:
        ValueError: the text is no template.

    Source: https://jinja.palletsprojects.com/en/stable/sandbox/
    """
    sandbox = _Sandbox(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printable)
    try:
        return sandbox.from_string(text)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        msg = f"not a Jinja template: {error}" + (f" (line {line})" if line else "")
        raise ValueError(msg) from error


class Prompter:
    """Turns records into what the engine is asked, for one job."""

    def __init__(self, spec: "JobSpec") -> None:
        self._spec = spec
        self._input = spec.input
        self._template = compile_template(spec.input.template) if spec.input.template is not None else None
        self._sampling = spec.sampling.model_dump(include=spec.sampling.model_fields_set, by_alias=True)

    def id_of(self, record: Record) -> str | None:
        """The id that a record gives itself, or None if the job has no `id_column`.

        Raises:
            RowError: there is none, or it is no plain value.
        """
        column = self._input.id_column
        if column is None:
            return None
        value = record.get(column)
        if value is None or value == "":
            raise RowError("parse", "MissingId", f"no value in id column {column!r}")
        if isinstance(value, bytes | list | dict):
            raise RowError("parse", "BadId", f"the value in id column {column!r} is a {type(value).__name__}")
        text = str(value)
        if len(text) > _MAX_ID_CHARS:
            raise RowError("parse", "BadId", f"the value in id column {column!r} has {len(text)} characters")
        return text

    def __call__(self, record: Record) -> tuple[str | None, dict[str, Any]]:
        """The prompt as people read it, and the request beyond it (empty for a plain prompt).

        Raises:
            RowError: the row cannot be asked.
        """
        request: dict[str, Any] = {}
        prompt = self._prompt(record, request)
        if self._input.document_column is not None:
            request["document"] = _text(record, self._input.document_column)
        if self._input.image_column is not None:
            request["images"] = _images(record, self._input.image_column)
        if self._input.sampling_column is not None:
            request |= self._own_sampling(record, self._input.sampling_column)
        if self._input.adapter_column is not None:
            request |= self._adapter(record, self._input.adapter_column)
        return prompt, request

    def _prompt(self, record: Record, request: dict[str, Any]) -> str | None:
        if self._template is not None:
            return self._render(self._template, record)
        if self._input.token_ids_column is not None:
            request["token_ids"] = _token_ids(record, self._input.token_ids_column)
            return None
        if self._input.messages_column is not None:
            request["messages"] = messages(_value(record, self._input.messages_column), self._input.messages_column)
            return json_text(request["messages"])
        names = ("text", "prompt", "messages") if self._spec.task == "chat" else ("text", "prompt")
        there = [name for name in names if record.get(name) is not None] or [name for name in names if name in record]
        column = self._input.column or next(iter(there), "text")
        is_messages = isinstance(record.get(column), list) or (column == "messages" and self._input.column is None)
        if self._spec.task == "chat" and is_messages:
            request["messages"] = messages(record[column], column)
            return json_text(request["messages"])
        return _text(record, column)

    def _render(self, template: Template, record: Record) -> str:
        try:
            prompt = template.render({**record, "row": record})
            prompt.encode()  # a template can make characters that no text may have
        except Exception as error:  # whatever a template does to a row's values is the row's failure
            raise RowError("template", type(error).__name__, str(error) or "the template failed") from error
        if not prompt:
            raise RowError("template", "EmptyPrompt", "the template gives an empty prompt for this row")
        return prompt

    def _own_sampling(self, record: Record, column: str) -> dict[str, Any]:
        value = record.get(column)
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except (ValueError, RecursionError) as error:
                raise RowError("parse", "BadSampling", f"column {column!r} is no JSON: {error}") from error
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise RowError("parse", "BadSampling", f"column {column!r} is a {type(value).__name__}, not a mapping")
        given = {name: item for name, item in value.items() if item is not None}
        try:
            return {"sampling": SamplingSpec.model_validate({**self._sampling, **given}).to_kwargs()}
        except ValidationError as error:
            lines = explain(error.errors(include_url=False), SamplingSpec)
            raise RowError("parse", "BadSampling", f"column {column!r}: " + "; ".join(lines)) from error

    def _adapter(self, record: Record, column: str) -> dict[str, Any]:
        value = record.get(column)
        if value is None or value == "":
            return {}
        adapters = self._spec.lora.adapters if self._spec.lora else {}
        if not isinstance(value, str) or value not in adapters:
            known = ", ".join(adapters)
            raise RowError("parse", "UnknownAdapter", f"column {column!r} is {value!r}; lora.adapters has: {known}")
        return {"adapter": value}


def messages(value: object, where: str) -> list[dict[str, Any]]:
    """Chat messages, checked: a list of mappings with a role, or JSON of one; empty fields left out.

    Raises:
        RowError: it is none.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("parse", "BadMessages", f"{where!r} is no JSON list of messages: {error}") from error
    if not isinstance(value, list) or not value:
        raise RowError("parse", "BadMessages", f"{where!r} is not a list with messages in it")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(
                "parse", "BadMessages", f"{where!r} has a message without a role: {json_text(message)[:200]}"
            )
    return [{name: item for name, item in message.items() if item is not None} for message in value]


def _value(record: Record, column: str) -> Any:
    if column not in record:
        names = list(record)
        known = ", ".join(map(str, names[:_MAX_NAMES])) + (", ..." if len(names) > _MAX_NAMES else "")
        raise RowError("parse", "MissingColumn", f"no column {column!r}; the row has: {known or 'none'}")
    return record[column]


def _text(record: Record, column: str) -> str:
    value = _value(record, column)
    if not isinstance(value, str) or not value:
        what = "empty" if value in (None, "", []) else f"a {type(value).__name__}, not text"
        raise RowError("parse", "BadPrompt", f"column {column!r} is {what}")
    return value


def _token_ids(record: Record, column: str) -> list[int]:
    value = _value(record, column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not is_token_ids(value):
        raise RowError("parse", "BadTokenIds", f"column {column!r} is not a list of token ids")
    return list(value)


def is_token_ids(value: object) -> bool:
    """True for a list of whole numbers, at least one, none below 0."""
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


def _images(record: Record, column: str) -> list[str]:
    """Images as URIs; those that came as bytes as `data:` URIs."""
    value = _value(record, column)
    several = value if isinstance(value, list) else [value]
    uris = []
    for item in several:
        found = item.get("bytes") or item.get("path") if isinstance(item, dict) else item
        if isinstance(found, bytes) and found:
            uris.append("data:;base64," + base64.b64encode(found).decode())
        elif isinstance(found, str) and found:
            uris.append(found)
        else:
            raise RowError("parse", "BadImage", f"column {column!r} is neither a URI nor an image's bytes")
    if not uris:
        raise RowError("parse", "BadImage", f"column {column!r} has no image")
    return uris
