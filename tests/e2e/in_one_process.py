"""Answers the prompts on stdin twice in one process: by LLMPredictor in small batches at once, and by LLM.generate.

Prints one JSON line: `{"predictor": [...], "generate": [...]}`, each item `{"text", "token_ids"}`, in order.
"""

import asyncio
import json
import sys

import pyarrow as pa

from rayferry.job.calls import Call
from rayferry.job.predictor import LLMPredictor
from rayferry.job.rows import SOURCE_SCHEMA
from rayferry.job.spec import parse

BATCH = 2


def main():
    order = json.load(sys.stdin)
    sampling = {"temperature": 0, "max_tokens": order["max_tokens"]}
    places = {"input": {"uri": "/in"}, "output": {"uri": "/out"}}
    job = {"model": order["model"], "engine": order["engine"], "sampling": sampling} | places
    predictor = LLMPredictor(parse(job, "order"), "cpu")
    prompts = order["prompts"]
    rows = [{"id": str(i), "source_uri": "", "position": i, "prompt": prompt} for i, prompt in enumerate(prompts)]

    async def answer():
        table = pa.Table.from_pylist(rows, SOURCE_SCHEMA)
        batches = [table.slice(start, BATCH) for start in range(0, len(rows), BATCH)]
        return pa.concat_tables(await asyncio.gather(*map(predictor, batches)))

    texts = asyncio.run(answer()).column("generated_text").to_pylist()
    outcomes = predictor._pump.submit([Call(prompt) for prompt in prompts]).result()
    predictor._pump.close()

    import vllm

    outputs = predictor._pump._engine._llm.generate(prompts, vllm.SamplingParams(**sampling), use_tqdm=False)
    ours = [{"text": text, "token_ids": list(o.outputs[0].token_ids)} for text, o in zip(texts, outcomes, strict=True)]
    theirs = [{"text": o.outputs[0].text, "token_ids": list(o.outputs[0].token_ids)} for o in outputs]
    print(json.dumps({"predictor": ours, "generate": theirs}))


if __name__ == "__main__":
    main()
