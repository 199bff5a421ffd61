"""Runs a job with two replicas on two GPUs each: vLLM's own engine and workers, on a Ray whose GPUs are only numbers.

vLLM's build for CPUs starts and feeds workers as the one for GPUs does. In the middle one of the four is killed.

usage: several_gpus_job.py MODEL FOLDER     MODEL: whose tokenizer to take; prints one JSON line of what was seen
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1")
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # there may be fewer cores than workers

import psutil
import pyarrow.parquet as pq
import ray
import tiny_models
from ray.util import placement_group_table

from rayferry.job import pipeline
from rayferry.job.spec import parse

ROWS = 96
SHARED_MEMORY = Path("/dev/shm")


def engines():
    """vLLM's processes below this one: of each engine its workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            ancestors = ["forkserver" in " ".join(one.cmdline()) for one in (process, process.parent())]
            if all(ancestors) and process.children():
                found.append(process.children())
        except psutil.NoSuchProcess:
            continue
    return [[one for one in workers if "forkserver" in " ".join(one.cmdline())] for workers in found]


def kill_one(parts, seen):
    """Kills the last worker of an engine once a part is written."""
    while not (parts.exists() and any(parts.iterdir())):
        time.sleep(0.1)
    workers = engines()
    seen["workers"] = sorted(map(len, workers))
    seen["groups"] = [
        (group["strategy"], list(group["bundles"].values()))
        for group in placement_group_table().values()
        if group["state"] == "CREATED"
    ]
    os.kill(workers[0][-1].pid, signal.SIGKILL)


def main():
    folder = Path(sys.argv[2])
    tiny_models.generator(sys.argv[1], folder / "model")
    (folder / "in").mkdir()
    for number in range(8):
        lines = [f"prompt number {number} {at} is" for at in range(ROWS // 8)]
        (folder / "in" / f"{number}.txt").write_text("\n".join(lines))
    job = {
        "model": str(folder / "model"),
        "input": {"uri": str(folder / "in")},
        "output": {"uri": str(folder / "out"), "rows_per_part": 8},
        "sampling": {"temperature": 0, "max_tokens": 40, "ignore_eos": True},
        "engine": {
            "tensor_parallel_size": 2,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 128,
            "max_num_seqs": 8,
        },
        "replicas": 2,
        "batch_size": 2,
    }
    before = {*SHARED_MEMORY.glob("psm_*")}
    ray.init("local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False)
    seen = {}
    threading.Thread(target=kill_one, args=(folder / "out/data", seen), daemon=True).start()
    manifest = pipeline.run(parse(job, "job"), "several-gpus")
    rows = [row for part in (folder / "out/data").iterdir() for row in pq.read_table(part).to_pylist()]
    states = {group["state"] for group in placement_group_table().values()}
    ray.shutdown()
    deadline = time.monotonic() + 30
    while (engines() or {*SHARED_MEMORY.glob("psm_*")} - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [str(path) for path in {*SHARED_MEMORY.glob("psm_*")} - before] + engines()
    answers = sorted(row["prompt"] for row in rows if row["num_generated_tokens"] == 40)
    lives = len(manifest["replicas"])
    print(json.dumps(seen | {"answers": answers, "states": sorted(states), "left": left, "lives": lives}))


if __name__ == "__main__":
    main()
