"""One model instance and the rows it answers."""

import asyncio
import multiprocessing
import os
import secrets as random
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from rayferry.job import engine, secrets
from rayferry.job.answers import Answers, Outcome
from rayferry.job.calls import Call, calls_of
from rayferry.job.errors import EngineError, JobError, root_line, without_frames
from rayferry.job.pump import Pump
from rayferry.job.quarantine import Gate, Key, Suspect
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
        self,
        spec: JobSpec,
        device: str,
        progress: "ActorHandle[Any] | None" = None,
        *,
        openai: bool = False,
        all_here: bool = False,
    ) -> None:
        """Loads the model.

        Args:
            spec: the job.
            device: `gpu` or `cpu`, as placed.
            progress: told when the engine is ready, or why it is not.
            openai: rows are OpenAI batch lines.
            all_here: the whole input is with the replicas at once; see `line.Line`.

        Raises:
            EngineError: a secret cannot be had; the model or an engine argument is not usable here.
        """
        start = time.monotonic()
        self._spec = spec
        self._progress = progress
        self._life = _new_life(progress)
        self._gate = Gate()
        self._is_over(engine.advice(spec, device, {}))
        try:
            secrets.settle(spec.runtime_env.secrets)  # before vllm is imported, in the one process that needs them
        except JobError as error:
            self._give_up(str(error), error, loading=True)
        try:
            loaded = self._load(spec, device)
            parse_tools = loaded.tool_parser()
        except Exception as error:  # noqa: BLE001  # vLLM's have no common class
            reason = f"model {spec.model!r} could not be loaded: {root_line(error)}"
            if isinstance(error, EngineError):
                reason = root_line(error)
            elif isinstance(error, OSError) or "Connect" in reason:
                reason += "; check its name and that the nodes reach the hub, or give a folder or an s3:// prefix"
            elif engine.is_about_memory(reason):
                reason += f". {engine.sizes(spec, device)}{engine.advice(spec, device, {})}"
            self._give_up(reason, error, loading=not engine.was_killed(reason))
        self._answers = Answers(spec, openai=openai, labels=getattr(loaded, "labels", None), parse_tools=parse_tools)
        self._pump = Pump(
            loaded,
            spec.retry.engine_timeout_s,
            spec.retry.request_timeout_s,
            multiprocessing.active_children(),
            all_here=all_here,
        )
        if progress is not None:
            limits = getattr(loaded, "limits", {})
            advice = engine.advice(spec, device, limits)
            progress.replica_ready.remote(time.monotonic() - start, loaded.version, self._life, advice, limits)

    def _load(self, spec: JobSpec, device: str) -> Any:
        """The engine; what tests put another in place of."""
        return engine.load(spec, device)

    async def __call__(self, table: pa.Table) -> pa.Table:
        """Answers one batch.

        **Shape**: in, the source's columns; out, the same rows in the same order with `rows.answer_schema` added.
        A row that came in failed stays as it is; one that cannot be answered gets `stage`, `error_type`, `error`.

        Raises:
            EngineError: the engine died, and the run is over. (Else this process ends, and Ray starts it again.)
        """
        if self._progress is None or not table.num_rows:
            return self._answers.add_to(table, await self._outcomes(table))
        ids = table.column("id")
        key = (ids[0].as_py(), ids[-1].as_py(), table.num_rows)
        async with self._gate.together():
            suspect = await self._progress.begin.remote(key, self._life)
            if suspect is None:
                outcomes = await self._outcomes(table)
        if suspect is not None:
            async with self._gate.alone(suspect.deaths):
                outcomes = await self._outcomes_apart(table, key, suspect)
        self._progress.end.remote(key, self._life, self._pump.tally)
        return self._answers.add_to(table, outcomes)

    async def _outcomes_apart(self, table: pa.Table, key: Key, suspect: Suspect) -> list[Outcome]:
        """What a batch that may kill the engine came to, piece by piece; the board knows which is running."""
        outcomes: list[Outcome] = [None] * table.num_rows
        for row, deaths in suspect.poison.items():
            message = f"the engine died {deaths} times with this row, the last time with it alone; see the whole log"
            outcomes[row] = RowError("engine", "EngineDied", message)
        for at, piece in enumerate(suspect.pieces):
            await self._progress.expose.remote(key, self._life, at)  # type: ignore[union-attr]
            for row, outcome in zip(piece, await self._outcomes(table.take(piece)), strict=True):
                outcomes[row] = outcome
        return outcomes

    async def _outcomes(self, table: pa.Table) -> list[Outcome]:
        if table.column("request").null_count == table.column("stage").null_count == table.num_rows:
            plain = [Call(prompt) for prompt in table.column("prompt").to_pylist()]
            done = await self._submit(plain)
            return [output if isinstance(output, Exception) else (output,) for output in done]
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
        return outcomes

    async def _submit(self, calls: list[Call]) -> list[Any]:
        try:
            return await asyncio.wrap_future(self._pump.submit(calls))
        except EngineError as error:
            self._give_up(str(error), error)

    def _is_over(self, advice: str) -> None:
        """Says that this process starts.

        Raises:
            EngineError: the run is over: too many died before.
        """
        if self._progress is None:
            return
        import ray  # noqa: PLC0415

        failure = ray.get(self._progress.replica_starts.remote(self._life, advice))
        if failure:
            raise EngineError(failure)

    def _give_up(self, reason: str, error: Exception, *, loading: bool = False) -> NoReturn:
        """Ends this process, for Ray to start the replica again.

        Raises:
            EngineError: the run is over.
        """
        if self._progress is not None:
            import ray  # noqa: PLC0415

            if ray.get(self._progress.engine_died.remote(self._life, reason, loading=loading)):
                traceback.print_exception(error)
                for child in multiprocessing.active_children():  # vLLM's own process would keep the GPU's memory
                    child.kill()
                os._exit(1)  # Ray does not try the tasks of an actor again that ends by `exit_actor`
        raise EngineError(reason) from error

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
                without_frames(error)
                return error

        if any(request and '"images"' in request for request in columns[2]):
            return list(await asyncio.gather(*(asyncio.to_thread(asked, *row) for row in zip(*columns, strict=True))))
        return [asked(*row) for row in zip(*columns, strict=True)]


def _new_life(progress: "ActorHandle[Any] | None") -> str:
    """A name for this process: that of its actor, which stays when Ray starts it again, and one of its own."""
    actor = None
    if progress is not None:
        import ray  # noqa: PLC0415

        actor = ray.get_runtime_context().get_actor_id()
    return f"{actor}/{random.token_hex(4)}"
