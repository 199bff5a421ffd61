"""The job's real entrypoint with a stub in the engine's place, slow enough to be hit in the middle.

With CHAOS_ENGINE=vllm the engine is vLLM's own.
"""

import asyncio
import functools
import os
import random
import sys
from types import SimpleNamespace

import ray

from rayferry.job import __main__ as entrypoint
from rayferry.job import lease, pipeline
from rayferry.job.answers import Answers

# a killed driver's lease has to expire before the run can go on
lease.TTL_S, lease._RENEW_S, lease._POLL_S = 4.0, 1.0, 0.3


class Slow:
    """Answers one batch after the other at random, each in about a tenth of a second; refuses some."""

    def __init__(self, spec, device, progress, openai, **_options):
        self.answers = Answers(spec, openai=openai)
        self.one = asyncio.Lock()
        progress.replica_ready.remote(load_s=0.1, vllm="stub")

    async def __call__(self, table):
        async with self.one:
            await asyncio.sleep(random.uniform(0.05, 0.12))
        return self.answers.add_to(table, [self.answer(prompt) for prompt in table.column("prompt").to_pylist()])

    def answer(self, prompt):
        if prompt is None:
            return None
        if prompt.startswith("refuse"):
            return ValueError("too long")
        # of another length each time, and much longer than its prompt: so a task that is tried again gives other blocks
        text = prompt.upper() + " and so on" * random.randrange(100)
        answer = SimpleNamespace(text=text, finish_reason="stop", token_ids=[1, 2], stop_reason=None, logprobs=None)
        return [SimpleNamespace(outputs=[answer], prompt_token_ids=[0, 1])]


if __name__ == "__main__":
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    if os.environ.get("CHAOS_ENGINE") != "vllm":
        pipeline.run = functools.partial(pipeline.run, predictor=Slow)
    sys.exit(entrypoint.main())
