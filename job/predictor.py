"""One model instance and the rows it answers."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayferry.job import engine, secrets
from rayferry.job.answers import Answers, Outcome
from rayferry.job.calls import Call, calls_of
from rayferry.job.errors import EngineError, JobError, root_line
from rayferry.job.pump import Pump
from rayferry.job.rows import RowError
from rayferry.job.spec import JobSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class LLMPredictor:
    """A replica: vLLM's own engine, fed by as many batches at once as it can use.

    Ray Data makes one in every actor of the pool and calls it from one event loop; a call returns when its own
    rows are done, whatever else the engine is busy with.
    """

    def __init__(
        self, spec: JobSpec, device: str, progress: "ActorHandle[Any] | None" = None, *, openai: bool = False
    ) -> None:
        """Loads the model.

        Args:
            spec: the job.
            device: `gpu` or `cpu`, as placed.
            progress: told when the engine is ready, or why it is not.
            openai: rows are OpenAI batch lines.

        Raises:
            EngineError: a secret cannot be had; the model or an engine argument is not usable here.
        """
        start = time.monotonic()
        try:
            secrets.settle(spec.runtime_env.secrets)  # before vllm is imported, in the one process that needs them
        except JobError as error:
            _report_failure(progress, str(error))
            raise EngineError(str(error)) from error
        try:
            loaded = engine.load(spec, device)
            parse_tools = loaded.tool_parser()
        except Exception as error:
            reason = f"model {spec.model!r} could not be loaded: {root_line(error)}"
            if isinstance(error, OSError) or "Connect" in reason:
                reason += "; check its name and that the nodes reach the hub, or give a folder or an s3:// prefix"
            _report_failure(progress, reason)
            raise EngineError(reason) from error
        self._answers = Answers(spec, openai=openai, labels=getattr(loaded, "labels", None), parse_tools=parse_tools)
        self._pump = Pump(loaded)
        self._progress = progress
        if progress is not None:
            progress.replica_ready.remote(load_s=time.monotonic() - start, vllm=loaded.version)

    async def __call__(self, table: pa.Table) -> pa.Table:
        """Answers one batch.

        **Shape**: in, the source's columns; out, the same rows in the same order with `rows.answer_schema` added.
        A row that came in failed stays as it is; one that cannot be answered gets `stage`, `error_type`, `error`.

        Raises:
            EngineError: the engine died.
        """
        if table.column("request").null_count == table.column("stage").null_count == table.num_rows:
            plain = [Call(prompt) for prompt in table.column("prompt").to_pylist()]
            done = await self._submit(plain)
            return self._answers.add_to(
                table, [output if isinstance(output, Exception) else (output,) for output in done]
            )
        outcomes: list[Outcome] = [None] * table.num_rows
        calls: list[Call] = []
        spans: list[tuple[int, int]] = []
        for index, asked in enumerate(await self._calls(table)):
            if isinstance(asked, RowError):
                outcomes[index] = asked
            elif asked is not None:
                spans.append((index, len(asked)))
                calls += asked
        following = iter(await self._submit(calls))
        for index, num_calls in spans:
            several = [next(following) for _ in range(num_calls)]
            refused = [outcome for outcome in several if isinstance(outcome, Exception)]
            outcomes[index] = refused[0] if refused else several
        return self._answers.add_to(table, outcomes)

    async def _submit(self, calls: list[Call]) -> list[Any]:
        try:
            return await asyncio.wrap_future(self._pump.submit(calls))
        except EngineError as error:
            _report_failure(self._progress, str(error))
            raise

    @staticmethod
    async def _calls(table: pa.Table) -> list[list[Call] | RowError | None]:
        """What each row asks; None for one that failed before. Images are fetched away from the event loop."""
        columns = [table.column(name).to_pylist() for name in ("stage", "prompt", "request")]

        def asked(stage: str | None, prompt: str | None, request: str | None) -> list[Call] | RowError | None:
            if stage is not None:
                return None
            try:
                return calls_of(prompt, request)
            except RowError as error:
                return error

        if any(request and '"images"' in request for request in columns[2]):
            return list(await asyncio.gather(*(asyncio.to_thread(asked, *row) for row in zip(*columns, strict=True))))
        return [asked(*row) for row in zip(*columns, strict=True)]


def _report_failure(progress: "ActorHandle[Any] | None", reason: str) -> None:
    if progress is not None:
        import ray  # noqa: PLC0415

        ray.get(progress.failed.remote(reason))  # waited for: this process is about to end
