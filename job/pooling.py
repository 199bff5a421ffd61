"""vLLM's engine for the tasks `embed`, `classify` and `score`."""

from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

from rayferry.job.base_engine import BaseEngine, stage_of
from rayferry.job.calls import Call
from rayferry.job.pump import RefusedError, Settled
from rayferry.job.spec import JobSpec

_POOLED_TOGETHER = 256


class PoolingEngine(BaseEngine):
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
