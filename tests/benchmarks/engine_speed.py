"""One workload through Rayferry and its peers, on the GPUs of this machine, one after the other.

usage: engine_speed.py MODELS ROW [RESULTS]         a row of the table in docs/performance.md
       engine_speed.py --steps RESULTS STEP...      steps of one's own, each SIDE:MODEL:PROMPTS[:NAME=VALUE,...]

MODELS is a folder with `smol/`, the checkpoint of SmolLM2-135M-Instruct, and `llama2-7b-shape/`, a config.json of
Llama-2-7B's shape and a tokenizer. RESULTS gets the results of a row as JSON, of steps as lines of JSON.

SIDE is `bare` (`LLM.generate` of all prompts), `rayferry` (the job's entrypoint; with values of the job file such as
`batch_size=64` or `replicas=2`), `submitted` (the same by `rayferry submit` to the head at RAY_API_SERVER_ADDRESS),
`rayllm` (ray.data.llm, `batch` rows times `calls`), `plain` (Ray Data, `LLM.generate` for each batch of 32) or
`scripted` (that script by `ray job submit`). A model whose name has `shape` in it gets random weights. Every prompt has
its own length and its own number of new tokens, sampled with temperature 0.8; `prefixes=64` puts one of so many long
texts of `prefix_words` words before each, in random order. Output tokens a second, from the first engine that is ready
to the last row in Parquet (bare: to the last answer in memory). `start_s` is from the start of the process to the first
answer (bare: to the ready engine). With `first_token=1` that is one of a single token: ours is among the others, in
place of a longer one; the peers ask for theirs by itself as soon as they are loaded. The row `start` compares these, by
the medians of three rounds; it starts a head of Ray on this machine and ends it. Before `start`, `replicas` and `tp`
all sides run once uncounted: compiled graphs and kernels of a first run are found by the next one.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from statistics import median

WORDS = [
    "river",
    "house",
    "seven",
    "train",
    "green",
    "paper",
    "night",
    "cloud",
    "stone",
    "music",
    "sugar",
    "tiger",
    "plane",
    "radio",
    "alpha",
    "bridge",
]
ENGINE = {"max_model_len": 4096, "enable_prefix_caching": True, "seed": 0}
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "ignore_eos": True}
FILES = 16
UNCOUNTED = 64  # prompts
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
STARTED = time.time()
# What is compared first, by the others; the aims are ratios of rayferry's speed to theirs, in their order; of `start`
# those of its seconds, which may be no more.
ROWS = {
    "llama": ("llama2-7b-shape:2000", ["rayferry", "bare", "rayllm"], [1.00, 1.05]),
    "smol-one": ("smol:6000", ["rayferry resources.engines_per_gpu=1", "bare", "rayllm"], [0.95, 1.6]),
    "smol-shared": ("smol:6000", ["rayferry", "bare"], [2.0]),
    "prefixes": (
        "llama2-7b-shape:2000",
        ["rayferry prefixes=64,prefix_words=3000", "bare prefixes=64,prefix_words=3000"],
        [1.5],
    ),
    "prefixes-80": (  # with as much memory as a GPU of 80 GiB has, of one of 140
        "llama2-7b-shape:2000",
        [
            "rayferry prefixes=64,prefix_words=3000,engine.gpu_memory_utilization=0.51",
            "bare prefixes=64,prefix_words=3000,gpu_memory_utilization=0.51",
        ],
        [1.5],
    ),
    "start": (
        "llama2-7b-shape:64",
        ["submitted first_token=1", "bare first_token=1", "scripted first_token=1"],
        [1.1, 1.0],
    ),
    "plain": ("llama2-7b-shape:448", ["rayferry", "plain"], [5]),
    "replicas": ("llama2-7b-shape:8000", ["rayferry replicas=4", "rayferry"], [3.8]),
    "replicas-2": ("llama2-7b-shape:4000", ["rayferry replicas=2", "rayferry"], [1.9]),  # on two GPUs, as above
    "replicas-tp2": (  # on four GPUs
        "llama2-7b-shape:4000",
        ["rayferry replicas=2,engine.tensor_parallel_size=2", "rayferry engine.tensor_parallel_size=2"],
        [1.9],
    ),
    "tp2": ("llama2-7b-shape:2000", ["rayferry engine.tensor_parallel_size=2", "bare tensor_parallel_size=2"], [0.97]),
    "tp4": ("llama2-7b-shape:2000", ["rayferry engine.tensor_parallel_size=4", "bare tensor_parallel_size=4"], [0.97]),
}


def workload(count, prefixes=0, prefix_words=0):
    """Prompts and their numbers of new tokens, the same for the same count."""
    draw = random.Random(0)
    heads = [" ".join(draw.choices(WORDS, k=prefix_words or 1500)) + " " for _ in range(prefixes)] or [""]
    rows = []
    for at in range(count):
        words = max(8, min(1500, int(draw.lognormvariate(4.9, 0.8)))) if not prefixes else 40
        tokens = max(8, min(800, int(draw.lognormvariate(4.9, 0.7)))) if not prefixes else 32
        rows.append({"text": f"{draw.choice(heads)}{at} {' '.join(draw.choices(WORDS, k=words))}", "tokens": tokens})
    return rows


def engine_of(model):
    """Engine arguments, the same for all sides."""
    return ENGINE | ({"load_format": "dummy"} if "shape" in model else {})


def bare(model, rows, settings):
    """In this process."""
    from vllm import LLM, SamplingParams

    options = engine_of(model) | {name: value_of(value) for name, value in settings.items()}
    to_first_token = options.pop("first_token", 0)
    start = time.time()
    llm = LLM(model=model, **options)
    ready = started = time.time()
    if to_first_token:
        started = first_token_at(llm, rows[0]["text"])
    params = [SamplingParams(max_tokens=row["tokens"], **SAMPLING) for row in rows]
    done = llm.generate([row["text"] for row in rows], params, use_tqdm=False)
    end = time.time()
    tokens = sum(len(one.outputs[0].token_ids) for one in done)
    return {"load_s": ready - start, "s": end - started, "tokens": tokens, "start_s": started - STARTED}


def first_token_at(llm, prompt):
    """When an engine has its first token: kernels that are compiled where they are first used make it seconds later."""
    from vllm import SamplingParams

    llm.generate([prompt], SamplingParams(**SAMPLING | {"max_tokens": 1}), use_tqdm=False)
    return time.time()


def value_of(text):
    """A setting's value: JSON if it is, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def rayferry(model, rows, settings):
    """The job's entrypoint, which starts a cluster of its own unless RAY_ADDRESS names one."""
    return _our_run(model, rows, settings, ["-m", "rayferry.job", "spec.json", "--submission-id", "run"])


def submitted(model, rows, settings):
    """The command, which goes through the Jobs API."""
    return _our_run(model, rows, settings, ["-m", "rayferry.submit", "submit", "spec.json"])


def _our_run(model, rows, settings, words):
    """Writes the prompts and the job file to a folder, runs the command there, reads the manifest."""
    if settings.pop("first_token", 0):
        rows[0]["tokens"] = 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for at in range(FILES):
            lines = [
                json.dumps({"text": row["text"], "sampling": {"max_tokens": row["tokens"]}}) for row in rows[at::FILES]
            ]
            (folder / "in" / f"{at:02d}.jsonl").write_text("\n".join(lines))
        (folder / "spec.json").write_text(json.dumps(_job(model, folder, settings)))
        start = time.time()
        log_path = Path(os.environ.get("OUT", name)) / f"rayferry-{time.time_ns()}.log"
        with log_path.open("wb") as log:
            done = subprocess.run([sys.executable, *words], cwd=folder, stdout=log, stderr=log, check=False)
        if done.returncode:
            return {"exit": done.returncode, "log": log_path.read_text(errors="replace")[-600:]}
        whole = time.time() - start
        path = folder / "out/_meta/manifest.json"
        manifest = json.loads(path.read_text())
        ended = path.stat().st_mtime - start  # a command that follows the job sees its end later
    seconds, tokens = manifest["seconds"], manifest["tokens"]["generated"]
    assert manifest["counts"]["succeeded"] == len(rows), manifest["counts"]
    told = {name: manifest[name] for name in ("seconds", "prefix_cache_hit_rate", "gpu_seconds", "replicas", "engine")}
    return {
        "load_s": seconds["load"],
        "s": tokens / manifest["tokens_per_s"],
        "tokens": tokens,
        "whole_s": whole,
        "start_s": ended - seconds["total"] + seconds["first_answer"],
    } | told


def _job(model, folder, settings):
    """The job file."""
    job = {
        "model": model,
        "input": {"uri": f"{folder}/in/", "sampling_column": "sampling"},
        "output": {"uri": f"{folder}/out/", "rows_per_part": 256},
        "sampling": SAMPLING,
        "engine": engine_of(model),
    }
    for path, value in settings.items():
        at = job
        *parents, last = path.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value_of(value)
    return job


def rayllm(model, rows, settings):
    """ray.data.llm, which tells of every row how long it took and when it was there."""
    import pyarrow.parquet as pq
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=engine_of(model),
        concurrency=1,
        batch_size=int(settings.get("batch", 32)),
        max_concurrent_batches=int(settings.get("calls", 8)),
        chat_template_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "prompt": row["text"],
            "sampling_params": {"max_tokens": int(row["tokens"]), **SAMPLING},
        },
        postprocess=lambda row: {
            "text": row["generated_text"],
            "tokens": row["num_generated_tokens"],
            "begun": time.time() - float(row["time_taken_llm"]),
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        rows_in = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // 128))
        processor(rows_in).write_parquet(folder)
        end = time.time()
        table = pq.read_table(folder)
    assert table.num_rows == len(rows)
    begun = min(table.column("begun").to_pylist())
    return {"load_s": begun - start, "s": end - begun, "tokens": sum(table.column("tokens").to_pylist())}


class Plain:
    """The example's predictor: one batch at a time."""

    def __init__(self, model, prompt):
        from vllm import LLM

        self.llm = LLM(model=model, **engine_of(model))
        self.ready = first_token_at(self.llm, prompt) if prompt else time.time()

    def __call__(self, batch):
        from vllm import SamplingParams

        params = [SamplingParams(max_tokens=int(tokens), **SAMPLING) for tokens in batch["tokens"]]
        done = self.llm.generate([str(text) for text in batch["text"]], params, use_tqdm=False)
        answers = [one.outputs[0] for one in done]
        return {
            "text": [answer.text for answer in answers],
            "tokens": [len(answer.token_ids) for answer in answers],
            "ready": [self.ready] * len(answers),
        }


def plain(model, rows, settings):
    """Ray Data with that predictor."""
    import pyarrow.parquet as pq
    import ray

    ray.init(include_dashboard=None if "RAY_ADDRESS" in os.environ else False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        rows_in = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // 128))
        done = rows_in.map_batches(
            Plain,
            fn_constructor_args=(model, rows[0]["text"] if "first_token" in settings else None),
            batch_size=32,
            num_gpus=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        done.write_parquet(folder)
        end = time.time()
        table = pq.read_table(folder)
    ready = min(table.column("ready").to_pylist())
    tokens = sum(table.column("tokens").to_pylist())
    return {"load_s": ready - start, "s": end - ready, "tokens": tokens, "ready_at": ready}


def scripted(model, rows, settings):
    """The plain script, this one, as a job of Ray's."""
    given = ",".join(f"{name}={value}" for name, value in settings.items())
    step = f"plain:{model}:{len(rows)}" + (f":{given}" if given else "")
    script = [sys.executable, str(Path(__file__).resolve()), "--one", step]
    start = time.time()
    command = [*RAY, "job", "submit", "--", *script]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.search(r"^ONE (.*)", done.stdout, re.MULTILINE)
    if found is None:
        return {"exit": done.returncode, "log": done.stdout[-600:]}
    result = json.loads(found[1])
    return result | {"start_s": result["ready_at"] - start, "whole_s": time.time() - start}


SIDES = {
    "bare": bare,
    "rayferry": rayferry,
    "submitted": submitted,
    "rayllm": rayllm,
    "plain": plain,
    "scripted": scripted,
}


@contextmanager
def _head():
    """A head of Ray with its Jobs API, for what is submitted."""
    start = ["start", "--head", "--disable-usage-stats", "--dashboard-host=127.0.0.1", "--dashboard-port=8265"]
    subprocess.run([*RAY, *start], check=True, stdout=subprocess.DEVNULL)
    os.environ["RAY_API_SERVER_ADDRESS"] = "http://127.0.0.1:8265"
    try:
        yield
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        subprocess.run([*RAY, "stop"], check=True, stdout=subprocess.DEVNULL)


def run(step):
    """A step in a process of its own, as an engine's memory goes with its process."""
    done = subprocess.run([sys.executable, __file__, "--one", step], check=False, capture_output=True)
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("ONE ")]
    result = json.loads(lines[0][4:]) if lines else {"exit": done.returncode, "log": done.stderr.decode()[-600:]}
    if "s" in result:
        result["tokens_per_s"] = result["tokens"] / result["s"]
    result = {name: round(value, 1) if isinstance(value, float) else value for name, value in result.items()}
    result = {"step": step, "at": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())} | result
    print("RESULT", json.dumps(result), flush=True)
    return result


def compare(folder, name):
    """A row of the table: what each side came to, and the ratio to each of the others."""
    workload_, sides, aims = ROWS[name]
    is_start = name == "start"
    value = "start_s" if is_start else "tokens_per_s"
    steps = []
    for side in sides:
        kind, _, settings = side.partition(" ")
        settings = settings or ("batch=128,calls=16" if kind == "rayllm" else "")
        steps.append((kind, f":{settings}" if settings else ""))
    with _head() if is_start else nullcontext():
        if is_start or name.startswith(("replicas", "tp")):
            for kind, settings in steps:
                run(f"{kind}:{folder}/{workload_.partition(':')[0]}:{UNCOUNTED}{settings}")
        rounds = 3 if is_start else 1
        results = [run(f"{kind}:{folder}/{workload_}{settings}") for kind, settings in steps * rounds]
    sums = [[result.get(value) for result in results[at :: len(sides)]] for at in range(len(sides))]
    ours, *theirs = [median(values) if all(values) else None for values in sums]
    ratios = [round(ours / other, 3) if ours and other else None for other in theirs]
    for side, ratio, aim in zip(sides[1:], ratios, aims, strict=True):
        print(f"RATIO {name}: {ratio} of {side} (the aim is {aim})", flush=True)
    return {"row": name, "machine": machine(), "ratios": dict(zip(sides[1:], ratios, strict=True)), "results": results}


def machine():
    """GPUs, CPUs and versions."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    gpus = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    versions = {name: metadata.version(name) for name in ("vllm", "ray", "torch", "pyarrow")}
    return {"gpus": gpus, "cpus": os.cpu_count(), "python": sys.version.split()[0]} | versions


def main():
    first, *rest = sys.argv[1:]
    if first == "--one":
        side, model, count, *given = rest[0].split(":")
        settings = dict(one.split("=") for one in given[0].split(",")) if given else {}
        rows = workload(int(count), *(int(settings.pop(name, 0)) for name in ("prefixes", "prefix_words")))
        print("ONE", json.dumps(SIDES[side](model, rows, settings)), flush=True)
    elif first == "--steps":
        results, *steps = rest
        for step in steps:
            result = run(step)
            with Path(results).open("a") as file:
                file.write(json.dumps(result) + "\n")
    else:
        name, *results = rest
        found = compare(first.rstrip("/"), name)
        if results:
            Path(results[0]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
