"""The main job on GPUs, through the real Jobs API: one replica, two, and tensor parallelism; each beside bare vLLM.

usage: gpu_main_job.py FOLDER STEP...     needs a Ray head (RAY_API_SERVER_ADDRESS) and vLLM; prints RESULT lines

A step is KIND:MODEL:SIZE:PROMPTS. KIND is `rayferry` or `bare`; SIZE is `tpN` (one replica of N GPUs) or `xN` (N
replicas of one GPU each). Prompts are generated, answers greedy and of fixed length: both sides do the same work.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

MAX_TOKENS = 128
FILES = 16
WORDS = ["river", "house", "seven", "train", "green", "paper", "night"]
WORDS += ["cloud", "stone", "music", "sugar", "tiger", "plane", "radio"]
CLI = [sys.executable, "-c", "from rayferry.submit.cli import main; main()"]


def prompts(count):
    """Texts of 8 to 400 words, the same for the same count."""
    draw = random.Random(0)
    sizes = [max(8, min(400, int(draw.lognormvariate(4.5, 0.8)))) for _ in range(count)]
    return [f"{i} " + " ".join(draw.choice(WORDS) for _ in range(size)) for i, size in enumerate(sizes)]


def engine_of(model, size):
    """Engine arguments, the same for both sides."""
    engine = {"max_model_len": 2048, "seed": 0}
    if "shape" in model:
        engine["load_format"] = "dummy"
    if size.startswith("tp"):
        engine["tensor_parallel_size"] = int(size[2:])
    return engine


def rayferry(folder, model, size, count):
    """Submits a job and reads what came of it. Seconds are from the first ready engine to the manifest."""
    place = folder / f"{Path(model).name}-{size}-{time.time_ns()}"
    (place / "in").mkdir(parents=True)
    texts = prompts(count)
    for number in range(FILES):
        rows = [json.dumps({"text": text, "key": i}) for i, text in enumerate(texts) if i % FILES == number]
        (place / "in" / f"{number}.jsonl").write_text("\n".join(rows))
    job = {
        "name": f"gpu-{size}",
        "model": model,
        "input": {"uri": str(place / "in"), "id_column": "key"},
        "output": {"uri": str(place / "out"), "rows_per_part": 256},
        "sampling": {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True},
        "engine": engine_of(model, size),
        "replicas": int(size[1:]) if size.startswith("x") else 1,
    }
    (place / "job.json").write_text(json.dumps(job))
    start = time.time()
    done = subprocess.run([*CLI, "submit", str(place / "job.json")], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"exit": done.returncode}
    manifest = json.loads((place / "out/_meta/manifest.json").read_text())
    rows = [row for part in (place / "out/data").glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    assert sorted(int(row["id"]) for row in rows) == list(range(count)), "rows lost or doubled"
    answers = {int(row["id"]): row["generated_text"] for row in rows}
    (folder / f"rayferry-{Path(model).name}-{size}.json").write_text(json.dumps(answers))
    return {
        "out_tok_s": manifest["tokens_per_s"],
        "tokens": manifest["tokens"]["generated"],
        "load_s": manifest["seconds"]["load"],
        "whole_s": round(time.time() - start, 1),
        "groups_left": groups_left(),
    }


def groups_left():
    """Placement groups that are not removed."""
    import ray
    from ray.util.state import list_placement_groups

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    return sum(group.state != "REMOVED" for group in list_placement_groups())


def bare(folder, model, size, count):
    """`LLM.generate` of all prompts at once, in a process of its own."""
    code = f"""
import json, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import gpu_main_job as g
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    start = time.time()
    llm = LLM(model={model!r}, **g.engine_of({model!r}, {size!r}))
    ready = time.time()
    params = SamplingParams(temperature=0, max_tokens=g.MAX_TOKENS, ignore_eos=True)
    done = llm.generate(g.prompts({count}), params, use_tqdm=False)
    end = time.time()
    tokens = sum(len(o.outputs[0].token_ids) for o in done)
    json.dump([o.outputs[0].text for o in done], open({str(folder / "bare.json")!r}, "w"))
    print("BARE", json.dumps({{"out_tok_s": round(tokens / (end - ready), 1), "tokens": tokens,
                               "load_s": [round(ready - start, 1)]}}))
"""
    script = folder / "bare.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], check=False, stdout=subprocess.PIPE, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("BARE ")), None)
    if line is None:
        return {"exit": done.returncode}
    result = json.loads(line.removeprefix("BARE "))
    texts = json.loads((folder / "bare.json").read_text())
    for ours in sorted(folder.glob(f"rayferry-{Path(model).name}-*.json")):
        answers = json.loads(ours.read_text())
        if len(answers) == len(texts):
            same = sum(answers[str(i)] == text for i, text in enumerate(texts))
            result[f"same_as_{ours.stem}"] = f"{same}/{len(texts)}"
    return result


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for step in sys.argv[2:]:
        kind, model, size, count = step.split(":")
        result = {"rayferry": rayferry, "bare": bare}[kind](folder, model, size, int(count))
        print("RESULT", json.dumps({"step": step} | result), flush=True)


if __name__ == "__main__":
    main()
