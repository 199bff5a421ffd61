"""Every task on a GPU, LLMPredictor beside vLLM's own calls in one process: the same answers, or a line that says not.

usage: gpu_tasks.py FOLDER MODEL     MODEL is a folder with SmolLM2; prints a RESULT line for each task
"""

import asyncio
import base64
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

ENGINE = {"max_model_len": 512, "gpu_memory_utilization": 0.3, "enforce_eager": True}
PROMPTS = ["The capital of France is", "Once upon a time", "Water boils at", "My favourite season is"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def predictor_of(model, openai=False, **changes):
    from rayferry.job.predictor import LLMPredictor
    from rayferry.job.spec import parse

    job = {"model": str(model), "input": {"uri": "/nowhere"}, "output": {"uri": "/out"}, "engine": ENGINE}
    return LLMPredictor(parse(job | changes, "job"), "gpu", openai=openai)


def ask(predictor, asked):
    """Answers (prompt, request) pairs; rows in order."""
    from rayferry.job.rows import SOURCE_SCHEMA

    rows = [
        {
            "id": str(at),
            "source_uri": "",
            "position": at,
            "prompt": prompt,
            "request": json.dumps(request) if request else None,
        }
        for at, (prompt, request) in enumerate(asked)
    ]
    return asyncio.run(predictor(pa.Table.from_pylist(rows, SOURCE_SCHEMA))).to_pylist()


def llm_of(predictor):
    predictor._pump.close()
    return predictor._pump._engine._llm


def generate(folder, model):
    import vllm

    greedy = {"temperature": 0.0, "max_tokens": 16}
    predictor = predictor_of(model, sampling={"temperature": 0, "max_tokens": 16},
                             on_error={"prompt_too_long": "truncate_left"},
                             input={"uri": "/nowhere", "sampling_column": "s"})  # fmt: skip
    asked = [(prompt, None) for prompt in PROMPTS]
    asked += [("A person:", {"sampling": greedy | {"max_tokens": 80, "structured_outputs": {"json": SCHEMA}}})] * 4
    asked += [("Yes or no?", {"sampling": greedy | {"structured_outputs": {"choice": ["yes", "no"]}}})]
    asked += [("Number:", {"sampling": greedy | {"structured_outputs": {"regex": "[0-9]{3}"}}})]
    asked += [("Two:", {"sampling": {"temperature": 0.9, "seed": 1, "n": 2, "max_tokens": 5, "logprobs": 2}})]
    asked += [("word " * 900, None), (None, {"token_ids": [999999999]}), ("", None)]
    rows = ask(predictor, asked)
    llm = llm_of(predictor)
    theirs = [o.outputs[0].text for o in llm.generate(PROMPTS, vllm.SamplingParams(**greedy), use_tqdm=False)]
    told = {"same_as_llm_generate": [row["generated_text"] for row in rows[:4]] == theirs}
    told["json"] = all(set(json.loads(row["generated_text"])) == {"name", "age"} for row in rows[4:8])
    told["choice"], told["regex"] = rows[8]["generated_text"] in {"yes", "no"}, rows[9]["generated_text"].isdigit()
    told["n"] = len(rows[10]["outputs"]) == 2 and len(rows[10]["outputs"][0]["logprobs"][0]["top"]) >= 2
    told["truncated"] = rows[11]["num_input_tokens"]
    told["stages"] = [rows[12]["stage"], rows[13]["stage"]]
    return told


def chat(folder, model):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties":
            {"a": {"type": "integer", "maximum": 9}}, "required": ["a"], "additionalProperties": False}}}  # fmt: skip
    asked = {"url": "/v1/chat/completions", "logprobs": None}
    limit = {"temperature": 0.0, "max_tokens": 24}
    named = {"tool_choice": {"type": "function", "function": {"name": "f"}}}
    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    predictor = predictor_of(model, openai=True, task="chat", chat={"tool_call_parser": "hermes"})
    rows = ask(predictor, [
        ("x", {"messages": messages, "openai": asked, "sampling": limit}),
        ("x", {"messages": messages, "openai": asked | {"tool_choice": "auto"}, "sampling": limit,
               "chat": {"tools": [tool]}}),
        ("x", {"messages": messages, "openai": asked | named, "chat": {"tools": [tool]},
               "sampling": limit | {"structured_outputs": {"json": tool["function"]["parameters"]}}}),
        ("x", {"prompts": ["A", [504, 3575]], "openai": {"url": "/v1/completions", "logprobs": 1},
               "sampling": limit | {"logprobs": 1}}),
    ])  # fmt: skip
    bodies = [json.loads(row["_response"]) if row["_response"] else row["error"] for row in rows]
    import vllm

    params = vllm.SamplingParams(**limit)
    theirs = llm_of(predictor).chat(messages, params, use_tqdm=False)[0].outputs[0].text
    return {
        "same_as_llm_chat": bodies[0]["choices"][0]["message"]["content"] == theirs,
        "auto_tool": "message" in bodies[1]["choices"][0],
        "named_tool": bodies[2]["choices"][0]["message"]["tool_calls"][0]["function"],
        "completions": len(bodies[3]["choices"]),
    }


def lora(folder, model):
    import vllm
    from vllm.lora.request import LoRARequest

    adapters = {name: str(folder / name) for name in ("lora-a", "lora-b")}
    predictor = predictor_of(model, lora={"adapters": adapters}, sampling={"temperature": 0, "max_tokens": 12},
                             input={"uri": "/nowhere", "adapter_column": "a"})  # fmt: skip
    names = [None, "lora-a", "lora-b", None, "lora-b"]
    rows = ask(predictor, [(PROMPTS[0], {"adapter": name} if name else None) for name in names])
    llm = llm_of(predictor)
    theirs = {}
    for at, name in enumerate([None, *adapters]):
        request = LoRARequest(name, at, adapters[name]) if name else None
        done = llm.generate(
            PROMPTS[0], vllm.SamplingParams(temperature=0, max_tokens=12), lora_request=request, use_tqdm=False
        )
        theirs[name] = done[0].outputs[0].text
    same = [row["generated_text"] == theirs[name] for row, name in zip(rows, names, strict=True)]
    return {"same_as_llm_generate": same,
            "different": len(set(theirs.values()))}  # fmt: skip


def embed(folder, model):
    predictor = predictor_of(model, task="embed")
    rows = ask(
        predictor, [*((prompt, None) for prompt in PROMPTS), ("word " * 900, None), (None, {"token_ids": [1, 2]})]
    )
    theirs = [o.outputs.embedding for o in llm_of(predictor).embed(PROMPTS, use_tqdm=False)]
    far = max(math.dist(row["embedding"], vector) for row, vector in zip(rows, theirs, strict=False))
    return {"distance": far, "stages": [row["stage"] for row in rows[4:]]}


def classify(folder, model):
    predictor = predictor_of(folder / "classifier", task="classify", engine=ENGINE | {"max_model_len": 256})
    rows = ask(predictor, [*((prompt, None) for prompt in PROMPTS), ("word " * 900, None)])
    theirs = [o.outputs.probs for o in llm_of(predictor).classify(PROMPTS, use_tqdm=False)]
    far = max(math.dist(row["probs"], probs) for row, probs in zip(rows, theirs, strict=False))
    return {"distance": far, "labels": [row["label"] for row in rows[:4]], "stage": rows[4]["stage"]}


def score(folder, model):
    predictor = predictor_of(folder / "scorer", task="score", engine=ENGINE | {"max_model_len": 256},
                             input={"uri": "/nowhere", "document_column": "d"})  # fmt: skip
    rows = ask(predictor, [(prompt, {"document": "a text"}) for prompt in PROMPTS])
    theirs = [o.outputs.score for o in llm_of(predictor).score(PROMPTS, ["a text"] * 4, use_tqdm=False)]
    return {"distance": max(abs(row["score"] - other) for row, other in zip(rows, theirs, strict=True))}


def image(folder, model):
    from PIL import Image

    def png(colour):
        stream = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(stream, "PNG")
        return stream.getvalue()

    def uri(content):
        return "data:;base64," + base64.b64encode(content).decode()

    (folder / "red.png").write_bytes(png("red"))
    predictor = predictor_of(folder / "vlm", task="chat", engine=ENGINE | {"max_model_len": 128},
                             sampling={"temperature": 0, "max_tokens": 8},
                             input={"uri": "/nowhere", "image_column": "i"})  # fmt: skip
    images = [uri(png("red")), str(folder / "red.png"), uri(png("blue")), uri(b"no image"), "/nowhere.png"]
    rows = ask(predictor, [("What is it?", {"images": [one]}) for one in images])
    return {"texts": [row["generated_text"] for row in rows[:3]], "tokens": rows[0]["num_input_tokens"],
            "stages": [row["stage"] for row in rows]}  # fmt: skip


TASKS = {task.__name__: task for task in (generate, chat, lora, embed, classify, score, image)}


def main():
    folder, model, *task = sys.argv[1:]
    if task:
        print("RESULT", json.dumps({"task": task[0]} | TASKS[task[0]](Path(folder), model)), flush=True)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    checkpoints = Path(__file__).parents[1] / "e2e" / "tiny_models.py"
    subprocess.run([sys.executable, str(checkpoints), model, folder, "image"], check=False)
    for name in TASKS:
        done = subprocess.run(
            [sys.executable, __file__, folder, model, name], check=False, capture_output=True, text=True
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        (Path(folder) / f"{name}.log").write_text(done.stdout + done.stderr)
        print(lines[0] if lines else f"FAILED {name}: {done.stderr[-1500:]}", flush=True)


if __name__ == "__main__":
    main()
