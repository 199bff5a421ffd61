"""What Rayferry's own work costs: its pipeline with an engine that answers at once, against plain Ray Data.

Each round reads the same JSON lines once by `ray.data.read_json(...).write_parquet(...)` and once by Rayferry (read,
ids, prompts, batches to a replica through its real pump, answers, parts with sha256, manifest), taking turns at being
first, and prints a RESULT line with rows per second and the ratio. Before the first round both run once over a
twentieth of the rows, printed too, as whoever comes first waits for Ray to start its workers. With `--memory`, it
runs Rayferry alone and prints, for each number of rows, the peak memory (PSS) of all processes together, of the driver
and the object store, of each of the two, and of every kind of process. The first number is run once before, unmeasured.

    python tests/benchmarks/pipeline.py --rows 200000 --chars 400 --batch-size 1024 --rounds 3
    python tests/benchmarks/pipeline.py --memory --rows 100000 10000000 --chars 40
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import psutil
import ray

from rayferry.job import pipeline
from rayferry.job.predictor import LLMPredictor
from rayferry.job.spec import parse

NUM_FILES = 8
SUMS = ("driver+store", "driver", "store", "all")


class Answer:
    """An output of vLLM as the pipeline reads it, made in no time: only its id is its own."""

    __slots__ = ("request_id",)
    finished = True
    outputs = (SimpleNamespace(text="yes", finish_reason="stop", token_ids=[1], logprobs=None),)
    prompt_token_ids = (1, 2, 3)


class AtOnce:
    """An engine whose every answer is there in the next step."""

    version = "stub"

    def __init__(self):
        self._ids = count()
        self._ready = []

    def add(self, call):
        answer = Answer()
        name = answer.request_id = str(next(self._ids))
        self._ready.append(answer)
        return name

    def step(self):
        done, self._ready = self._ready, []
        return done

    def is_busy(self):
        return bool(self._ready)

    def tool_parser(self):
        return None


class Replica(LLMPredictor):
    """LLMPredictor with that engine."""

    def _load(self, spec, device):
        return AtOnce()


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def write_rows(folder, num_rows, num_chars):
    """JSON lines with a prompt of words, a number and a name."""
    folder.mkdir()
    words = "the quick brown fox jumps over the lazy dog and runs away "
    prompt = (words * (num_chars // len(words) + 1))[:num_chars]
    for at in range(NUM_FILES):
        with (folder / f"{at}.jsonl").open("w") as out:
            for row in range(at, num_rows, NUM_FILES):
                out.write(json.dumps({"text": f"{row} {prompt}", "number": row, "name": f"name {row % 1000}"}) + "\n")


def plain(source, target):
    """Ray Data alone, as it is set up by default: the pipeline has settings of its own."""
    ray.data.DataContext._set_current(ray.data.DataContext())
    ray.data.DataContext.get_current().enable_progress_bars = False
    start = time.monotonic()
    ray.data.read_json(str(source)).write_parquet(str(target))
    return time.monotonic() - start


def rayferry(source, target, batch_size, num_rows, max_tokens=1):
    """The whole job but for the engine, which answers with one token, whatever `max_tokens` allows."""
    job = {
        "model": "none",
        "input": {"uri": str(source)},
        "output": {"uri": str(target), "rows_per_part": 20_000},
        "batch_size": batch_size,
        "sampling": {"max_tokens": max_tokens},
    }
    start = time.monotonic()
    manifest = pipeline.run(parse(job, "job"), "bench", predictor=Replica)
    elapsed = time.monotonic() - start
    assert manifest["counts"] == {"total": num_rows, "succeeded": num_rows, "failed": 0}, manifest["counts"]
    return elapsed


def in_turn(source, target, batch_size, num_rows, shape, at):
    """Both sides, Rayferry first where `at` is even; gives the ratio."""
    ways = {
        "rayferry": lambda: rayferry(source, target / "ours", batch_size, num_rows),
        "plain": lambda: plain(source, target / "plain"),
    }
    seconds = {name: ways[name]() for name in (list(ways) if at % 2 == 0 else reversed(ways))}
    shutil.rmtree(target)
    ratio = seconds["plain"] / seconds["rayferry"]
    sides = " ".join(f"{name}={num_rows / seconds[name]:.0f}/s" for name in ways)
    print(f"RESULT pipeline {shape} {sides} ratio={ratio:.2f}", flush=True)
    return ratio


class Peak:
    """The most memory that this process and its children held, in MiB, by kind and in sums, four times a second.

    `store` is what any of them holds of the object store's shared memory; `driver` is this process without it.
    """

    def __enter__(self):
        self.mib = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        me = psutil.Process()
        while not self._ended.wait(0.25):
            now = Counter()
            for process in [me, *me.children(recursive=True)]:
                try:
                    kind = "driver" if process == me else kind_of(process.cmdline())
                    for mapped in process.memory_maps(grouped=True):
                        now["store" if "plasma" in mapped.path else kind] += mapped.pss / 2**20
                except (psutil.Error, FileNotFoundError):
                    continue
            now["all"], now["driver+store"] = now.total(), now["driver"] + now["store"]
            for kind, mib in now.items():
                self.mib[kind] = max(self.mib.get(kind, 0), mib)


def kind_of(command):
    """What a process of Ray's is, in a word: `ray::IDLE`, `raylet`."""
    first = Path(command[0]).name if command else "?"
    if first.startswith("python") and len(command) > 1:
        first = Path(next((word for word in command[1:] if word.endswith(".py")), command[1])).name
    return first.split("(")[0].split(" ")[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--chars", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=1, help="as the job file has it; with --memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rayferry-bench-"))
    # the replica takes a GPU that is only a number: as on a real node, it leaves the CPUs to the others
    ray.init(
        "local",
        num_cpus=len(os.sched_getaffinity(0)),
        num_gpus=1,
        include_dashboard=False,
        logging_level="ERROR",
        object_store_memory=2 << 30,
    )
    peaks = []
    try:
        for num_rows in options.rows:
            source = folder / str(num_rows)
            write_rows(source, num_rows, options.chars)
            shape = f"rows={num_rows} chars={options.chars} batch_size={options.batch_size}"
            if options.memory:
                shape += f" max_tokens={options.max_tokens}"
                asked = (options.batch_size, num_rows, options.max_tokens)
                if not peaks:
                    rayferry(source, folder / "out", *asked)
                    shutil.rmtree(folder / "out")
                with Peak() as peak:
                    ours_s = rayferry(source, folder / "out", *asked)
                shutil.rmtree(folder / "out")
                shutil.rmtree(source)
                peaks.append(peak.mib)
                sizes = " ".join(f"{kind}={mib:.0f}" for kind, mib in sorted(peak.mib.items()))
                print(f"RESULT memory {shape} seconds={ours_s:.1f} MiB: {sizes}", flush=True)
                continue
            write_rows(folder / "first", num_rows // 20, options.chars)
            in_turn(folder / "first", folder / "out", options.batch_size, num_rows // 20, f"first {shape}", 0)
            ratios = [
                in_turn(source, folder / "out", options.batch_size, num_rows, shape, at) for at in range(options.rounds)
            ]
            shutil.rmtree(folder / "first")
            print(f"RESULT pipeline rows={num_rows} median ratio={statistics.median(ratios):.2f}", flush=True)
        if len(peaks) > 1:
            ratios = (f"{kind}={peaks[-1][kind] / peaks[0][kind]:.2f}" for kind in SUMS)
            print(f"RESULT memory ratio {' '.join(ratios)}", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
