"""What an engine made of a batch, in the columns of `rows.answer_schema`; and why, where it made nothing."""

import base64
import json
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from rayferry.job import openai_batch
from rayferry.job.openai_batch import CHAT, EMBEDDINGS, usage
from rayferry.job.pump import RefusedError
from rayferry.job.rows import RESPONSE, SOURCE_SCHEMA, RowError, answer_schema, clean, json_text, raw_text
from rayferry.job.spec import GENERATING, JobSpec

# How an answer ends; vLLM has `error` and `abort` too, for requests that it could not go on with.
_FINISHED = {"stop", "length", "repetition"}
_FAILURE_COLUMNS = ("stage", "error_type", "error", "raw")
# What one row came to: None (it had failed before), an error, or one output of vLLM for each of its calls.
Outcome = Exception | Sequence[Any] | None
ToolParser = Callable[[str, dict[str, Any]], tuple[str | None, list[dict[str, Any]]]]


class Answers:
    """Turns outputs into columns, for one job.

    Attributes:
        schema: what is added to a batch.
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        openai: bool = False,
        labels: Mapping[int, str] | None = None,
        parse_tools: ToolParser | None = None,
    ) -> None:
        schema = answer_schema(spec, openai=openai)
        self.schema = schema.append(pa.field(RESPONSE, pa.string())) if openai else schema
        self._spec = spec
        self._outputs = "outputs" in schema.names
        self._openai = openai
        self._labels = labels or {}
        self._parse_tools = parse_tools

    def add_to(self, table: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
        """The batch with `schema` added; `stage`, `error_type`, `error` and `raw` set where there is no answer.

        **Shape**: the same rows, in the same order.
        """
        columns = self._plain(outcomes)
        failed: dict[int, dict[str, str]] = {}
        if columns is None:
            columns, failed = self._mixed(table, outcomes)
        if failed:
            table = _with_failures(table, failed)
        for field, column in zip(self.schema, columns, strict=True):
            table = table.append_column(field, column)
        return table

    def _plain(self, outcomes: Sequence[Outcome]) -> list[pa.Array] | None:
        """The columns of a batch whose every row has one text; None for any other. Most batches are so."""
        if self._outputs or self._spec.task not in GENERATING:
            return None
        try:
            outputs = [output for (output,) in outcomes]  # type: ignore[misc]
            answers = [output.outputs[0] for output in outputs]
            if not all(answer.finish_reason in _FINISHED for answer in answers):
                return None
            columns: list[list[Any]] = [
                [answer.text for answer in answers],
                [answer.finish_reason for answer in answers],
                [len(output.prompt_token_ids) for output in outputs],
                [len(answer.token_ids) for answer in answers],
                [self._spec.model] * len(answers),
            ]
            return [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=True)]
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError, pa.ArrowException):
            return None

    def _mixed(self, table: pa.Table, outcomes: Sequence[Outcome]) -> tuple[Any, dict[int, dict[str, str]]]:
        """The columns of any batch, row by row; and what is to be said of rows that failed."""
        failed: dict[int, dict[str, str]] = {}
        answers: list[dict[str, Any]] = []
        requests = table.column("request") if self._openai else None
        for index, outcome in enumerate(outcomes):
            answer: dict[str, Any] = {}
            if isinstance(outcome, Exception):
                failed[index] = self._failure(outcome, table, index)
            elif outcome is not None:
                try:
                    answer = self._row(outcome, requests[index].as_py() if requests is not None else None)
                except RowError as error:
                    failed[index] = self._failure(error, table, index)
                except Exception as error:  # noqa: BLE001  # an output that is not as expected is the row's failure
                    failed[index] = self._failure(RowError("write", type(error).__name__, str(error)), table, index)
            answers.append(answer)
        return self._columns(answers, failed, table), failed

    def _columns(self, answers: list[dict[str, Any]], failed: dict[int, dict[str, str]], table: pa.Table) -> Any:
        try:
            return pa.Table.from_pylist(answers, schema=self.schema).columns
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass
        for index, answer in enumerate(answers):
            try:
                pa.Table.from_pylist([answer], schema=self.schema)
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                failed[index] = self._failure(RowError("write", type(error).__name__, str(error)), table, index)
                answers[index] = {}
        return pa.Table.from_pylist(answers, schema=self.schema).columns

    @staticmethod
    def _failure(error: Exception, table: pa.Table, index: int) -> dict[str, str]:
        if isinstance(error, RowError):
            columns = error.columns()
        else:
            cause = error.__cause__ or error
            stage = str(error) if isinstance(error, RefusedError) and str(error) else "engine"
            columns = {"stage": stage, "error_type": type(cause).__name__, "error": clean(str(cause))}
        row = {name: table.column(name)[index].as_py() for name in ("prompt", "request")}
        return columns | {"raw": raw_text({name: value for name, value in row.items() if value is not None})}

    def _row(self, outputs: Sequence[Any], request: str | None) -> dict[str, Any]:
        row = {"model": self._spec.model, "num_input_tokens": sum(len(output.prompt_token_ids) for output in outputs)}
        task = self._spec.task
        if task in GENERATING:
            row |= self._generated(outputs)
        elif task == "embed":
            vectors = [output.outputs.embedding for output in outputs]
            row |= {"embedding": vectors[0]}
            if self._openai:
                row |= {"embeddings": vectors}
        elif task == "classify":
            probs = outputs[0].outputs.probs
            best = max(range(len(probs)), key=probs.__getitem__)
            row |= {"probs": probs, "label": self._labels.get(best, str(best))}
        else:
            row |= {"score": outputs[0].outputs.score}
        if request is not None:
            row[RESPONSE] = self._response(row, outputs, json.loads(request))
        return row

    def _generated(self, outputs: Sequence[Any]) -> dict[str, Any]:
        completions = [completion for output in outputs for completion in output.outputs]
        for completion in completions:
            if completion.finish_reason not in _FINISHED:
                msg = f"vLLM gave the answer up with finish_reason {completion.finish_reason!r}; see the whole log"
                raise RowError("engine", "GenerationError", msg)
        row = {
            "generated_text": completions[0].text,
            "finish_reason": completions[0].finish_reason,
            "num_generated_tokens": sum(len(completion.token_ids) for completion in completions),
        }
        if self._outputs:
            row["outputs"] = [
                {
                    "text": completion.text,
                    "finish_reason": completion.finish_reason,
                    "num_generated_tokens": len(completion.token_ids),
                    "logprobs": _logprobs(completion),
                }
                for completion in completions
            ]
        return row

    def _response(self, row: Mapping[str, Any], outputs: Sequence[Any], request: dict[str, Any]) -> str:
        """The body of the result in OpenAI's form, as JSON."""
        asked = request["openai"]
        body: dict[str, Any] = {"created": int(time.time()), "model": self._spec.model}
        if asked["url"] == EMBEDDINGS:
            data = [
                {"object": "embedding", "index": index, "embedding": _vector(vector, as_base64=asked["base64"])}
                for index, vector in enumerate(row["embeddings"])
            ]
            return json_text(body | {"object": "list", "data": data, "usage": usage(row["num_input_tokens"])})
        choices = []
        for index, (completion, told) in enumerate(
            zip((c for output in outputs for c in output.outputs), row["outputs"], strict=True)
        ):
            choice = {"index": index, "finish_reason": told["finish_reason"], "stop_reason": completion.stop_reason}
            logprobs = told["logprobs"] if asked["logprobs"] is not None else None
            if asked["url"] == CHAT:
                choice |= self._message(told, request)
                choice["logprobs"] = openai_batch.chat_logprobs(logprobs)
            else:
                choice |= {"text": told["text"], "logprobs": openai_batch.completion_logprobs(logprobs)}
            choices.append(choice)
        kind = "chat.completion" if asked["url"] == CHAT else "text_completion"
        counts = usage(row["num_input_tokens"], row["num_generated_tokens"])
        return json_text(body | {"object": kind, "choices": choices, "usage": counts})

    def _message(self, told: Mapping[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        text, choice = told["text"], request["openai"].get("tool_choice", "none")
        message: dict[str, Any] = {"role": "assistant", "content": text}
        calls: list[dict[str, Any]] = []
        found = {"message": message}
        if choice == "auto" and self._parse_tools is not None:
            message["content"], calls = self._parse_tools(text, request["chat"])
        elif choice == "required":
            items = json.loads(text) if told["finish_reason"] == "stop" else []
            calls = [{"name": item["name"], "arguments": json.dumps(item["parameters"])} for item in items]
        elif isinstance(choice, dict):
            calls = [{"name": choice["function"]["name"], "arguments": text}]
        if calls:
            message["tool_calls"] = [
                {"id": f"call_{number}", "type": "function", "function": call} for number, call in enumerate(calls)
            ]
            if choice != "auto":
                message["content"] = ""
            if not isinstance(choice, dict) and told["finish_reason"] == "stop":
                found["finish_reason"] = "tool_calls"  # type: ignore[assignment]
        return found


def _with_failures(table: pa.Table, failed: Mapping[int, Mapping[str, str]]) -> pa.Table:
    for name in _FAILURE_COLUMNS:
        values = table.column(name).to_pylist()
        for index, problem in failed.items():
            values[index] = problem[name]
        field = SOURCE_SCHEMA.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    return table


def _logprobs(completion: Any) -> list[dict[str, Any]] | None:
    if completion.logprobs is None:
        return None
    told = []
    for token_id, choices in zip(completion.token_ids, completion.logprobs, strict=True):
        top = [
            {"token": found.decoded_token or "", "token_id": other, "logprob": found.logprob}
            for other, found in sorted(choices.items(), key=lambda item: item[1].rank or 0)
        ]
        mine = next(found for found in top if found["token_id"] == token_id)
        told.append(mine | {"top": top})
    return told


def _vector(vector: Sequence[float], *, as_base64: bool) -> list[float] | str:
    if not as_base64:
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
