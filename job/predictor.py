"""One model instance and the rows it answers. The only module that imports vllm."""

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayferry.job import weights
from rayferry.job.errors import EngineError, root_line
from rayferry.job.pump import Pump, RefusedError
from rayferry.job.rows import ANSWER_SCHEMA, SOURCE_SCHEMA, failure, raw_text
from rayferry.job.spec import JobSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_FAILURE_COLUMNS = ("stage", "error_type", "error", "raw")
_GIB = 1 << 30


class LLMPredictor:
    """A replica: vLLM's own engine, fed by as many batches at once as it can use.

    Ray Data makes one in every actor of the pool and calls it from one event loop; a call returns when its own
    rows are done, whatever else the engine is busy with.
    """

    def __init__(self, spec: JobSpec, device: str, progress: "ActorHandle[Any] | None" = None) -> None:
        """Loads the model.

        Args:
            spec: the job.
            device: `gpu` or `cpu`, as placed.
            progress: told when the engine is ready, or why it is not.

        Raises:
            EngineError: the model or an engine argument is not usable here.
        """
        start = time.monotonic()
        try:
            engine = _VllmEngine(spec, device)
        except Exception as error:
            reason = f"model {spec.model!r} could not be loaded: {root_line(error)}"
            if isinstance(error, OSError) or "Connect" in reason:
                reason += "; check its name and that the nodes reach the hub, or give a folder or an s3:// prefix"
            _report_failure(progress, reason)
            raise EngineError(reason) from error
        self._spec = spec
        self._pump = Pump(engine)
        self._progress = progress
        if progress is not None:
            progress.replica_ready.remote(load_s=time.monotonic() - start, vllm=engine.version)

    async def __call__(self, table: pa.Table) -> pa.Table:
        """Answers one batch.

        **Shape**: in, the source's columns; out, the same rows in the same order with `rows.ANSWER_SCHEMA` added.
        A row that came in failed stays as it is; one that the engine refuses gets `stage`, `error_type`, `error`.

        Raises:
            EngineError: the engine died.
        """
        outcomes: list[Any] = [None] * table.num_rows
        prompts = table.column("prompt").to_pylist()
        indices = [index for index, prompt in enumerate(prompts) if prompt is not None]
        try:
            done = await asyncio.wrap_future(self._pump.submit([prompts[index] for index in indices]))
        except EngineError as error:
            _report_failure(self._progress, str(error))
            raise
        for index, outcome in zip(indices, done, strict=True):
            outcomes[index] = outcome
        return _answered(table, outcomes, self._spec.model)


class _VllmEngine:
    """`vllm.LLM` for the pump: its own requests queue and its engine's steps, as `LLM.generate` uses them.

    The same code renders, tokenises and samples as there, so greedy answers are the same token for token.
    Source: https://docs.vllm.ai/en/latest/api/vllm/entrypoints/llm.html (enqueue, enqueue_chat, llm_engine)
    """

    def __init__(self, spec: JobSpec, device: str) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        options = spec.engine.to_kwargs()
        if device == "cpu":
            # A second process would take the engine's start from half a minute to a whole one on few cores.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, min(4, memory // (4 * _GIB)))))
        elif spec.engine.world_size > 1:
            # Workers of the engine are Ray actors in this replica's placement group.
            options.setdefault("distributed_executor_backend", "ray")
        model = weights.local_folder(spec.model)
        try:
            import vllm  # noqa: PLC0415  # only the cluster's nodes have it, and it takes seconds
            from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415
        except ImportError as error:
            msg = (
                f"vllm cannot be imported on this node ({error}); "
                "use an image that holds it, or add it to runtime_env.pip in the job file"
            )
            raise EngineError(msg) from error
        self.version = str(vllm.__version__)
        self._dead_error = EngineDeadError
        self._params = vllm.SamplingParams(**spec.sampling.to_kwargs())
        self._llm = vllm.LLM(model=model, revision=spec.revision, **options)
        self._chat = spec.task == "chat"

    def add(self, prompt: str) -> str:
        try:
            if self._chat:
                ids = self._llm.enqueue_chat(messages_of(prompt), self._params, use_tqdm=False)
            else:
                ids = self._llm.enqueue(prompt, self._params, use_tqdm=False)
        except self._dead_error:
            raise
        except Exception as error:
            raise RefusedError from error
        # The id inside the engine is "<counter>-<random>"; outputs carry the counter alone.
        return str(ids[0]).partition("-")[0]

    def step(self) -> list[Any]:
        return list(self._llm.llm_engine.step())

    def is_busy(self) -> bool:
        return bool(self._llm.llm_engine.has_unfinished_requests())


def messages_of(prompt: str) -> list[dict[str, Any]]:
    """A chat prompt as messages: a JSON list of them as it is, any other text as one message of the user."""
    if prompt.startswith("["):
        try:
            value = json.loads(prompt)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
            return value
    return [{"role": "user", "content": prompt}]


def _report_failure(progress: "ActorHandle[Any] | None", reason: str) -> None:
    if progress is not None:
        import ray  # noqa: PLC0415

        ray.get(progress.failed.remote(reason))  # waited for: this process is about to end


def _answered(table: pa.Table, outcomes: list[Any], model: str) -> pa.Table:
    """The batch with the answers' columns, and with the failures where there was none."""
    failed: dict[str, list[str | None]] = {name: table.column(name).to_pylist() for name in _FAILURE_COLUMNS}
    answers: list[dict[str, Any]] = []
    prompts = table.column("prompt")
    for index, outcome in enumerate(outcomes):
        if outcome is None:
            answers.append({})
        elif isinstance(outcome, Exception):
            answers.append({})
            problem = failure("engine", type(outcome).__name__, str(outcome))
            problem["raw"] = raw_text({"prompt": prompts[index].as_py()})
            for name, text in problem.items():
                failed[name][index] = text
        else:
            answer = outcome.outputs[0]
            answers.append(
                {
                    "generated_text": answer.text,
                    "finish_reason": answer.finish_reason,
                    "num_input_tokens": len(outcome.prompt_token_ids),
                    "num_generated_tokens": len(answer.token_ids),
                    "model": model,
                }
            )
    for name, values in failed.items():
        column = pa.array(values, SOURCE_SCHEMA.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), SOURCE_SCHEMA.field(name), column)
    for field, column in zip(ANSWER_SCHEMA, pa.Table.from_pylist(answers, schema=ANSWER_SCHEMA).columns, strict=True):
        table = table.append_column(field, column)
    return table
