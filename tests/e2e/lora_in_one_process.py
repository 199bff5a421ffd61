"""Answers one prompt with two LoRA adapters: by LLMPredictor in one batch, and by LLM.generate.

Arguments: model folder, folder of the adapters lora-a and lora-b. Prints one JSON line `{"predictor", "generate"}`.
"""

import asyncio
import json
import sys

import pyarrow as pa
import vllm
from vllm.lora.request import LoRARequest

from rayferry.job.predictor import LLMPredictor
from rayferry.job.rows import SOURCE_SCHEMA
from rayferry.job.spec import parse

PROMPT = "The capital of France is"
NAMES = ["lora-a", "lora-b"]


def main():
    model, folder = sys.argv[1:]
    adapters = {name: f"{folder}/{name}" for name in NAMES}
    engine = {"max_model_len": 128, "enforce_eager": True, "dtype": "float32", "max_num_seqs": 4}
    job = {
        "model": model, "engine": engine, "sampling": {"temperature": 0, "max_tokens": 12},
        "input": {"uri": "/nowhere", "adapter_column": "adapter"}, "output": {"uri": "/out"},
        "lora": {"adapters": adapters, "default": "lora-a"},
    }  # fmt: skip
    predictor = LLMPredictor(parse(job, "job"), "cpu")
    requests = [None, json.dumps({"adapter": "lora-b"})]
    rows = [
        {"id": str(at), "source_uri": "", "position": at, "prompt": PROMPT, "request": request}
        for at, request in enumerate(requests)
    ]
    answers = asyncio.run(predictor(pa.Table.from_pylist(rows, SOURCE_SCHEMA)))
    predictor._pump.close()
    llm = predictor._pump._engine._llm
    greedy = vllm.SamplingParams(temperature=0, max_tokens=12)
    requests = [LoRARequest(name, at, adapters[name]) for at, name in enumerate(NAMES, start=1)]
    outputs = [llm.generate(PROMPT, greedy, lora_request=request, use_tqdm=False)[0] for request in requests]
    theirs = [output.outputs[0].text for output in outputs]
    print(json.dumps({"predictor": answers.column("generated_text").to_pylist(), "generate": theirs}))


if __name__ == "__main__":
    main()
