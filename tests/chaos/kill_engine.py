"""Kills a replica's process, then an engine's own, under a real vLLM engine in the middle of a run; by hand, on a GPU.

usage: kill_engine.py FOLDER MODEL [PROMPTS [VICTIM...]]     prints RESULT lines; nothing is lost, and no process left

VICTIM is `replica`, `engine`, or `loading`: the engine's own process before it has loaded its model for the first time.

On a GPU vLLM's engine is a process of its own, a child of the replica: it has to end with it, or the GPU's memory stays
taken.
"""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq

RECORDS = 2


def job(folder, model, count):
    """A job of long answers in small parts; gives its file."""
    (folder / "in").mkdir(parents=True)
    lines = [json.dumps({"text": f"Tell me all about the number {at}."}) for at in range(count)]
    (folder / "in" / "a.jsonl").write_text("\n".join(lines))
    spec = {
        "model": model,
        "input": {"uri": str(folder / "in")},
        "output": {"uri": str(folder / "out"), "rows_per_part": max(8, count // 15)},
        "sampling": {"temperature": 0, "max_tokens": 128, "ignore_eos": True},
        "engine": {"max_model_len": 1024, "max_num_seqs": 64, "enforce_eager": True},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder / "spec.json"


def child(process, sign):
    """The process under one that has a sign in its title."""
    for found in process.children(recursive=True):
        with suppress(psutil.Error):
            if sign in " ".join(found.cmdline()):
                return found
    return None


def wait_for(what, timeout_s=300):
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def run(folder, model, count, victim):
    """One run, with one kill: of `replica`, or of the `engine`'s own."""
    spec = job(folder, model, count)
    records = folder / "out/_meta/checkpoint"
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "rayferry.job", str(spec), "--submission-id", "run"]
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        process = wait_for(lambda: child(psutil.Process(driver.pid), "LLMPredictor"))
        if victim == "loading":
            engine = wait_for(lambda: child(process, "EngineCore"))
        else:
            wait_for(lambda: records.exists() and len(list(records.iterdir())) >= RECORDS)
            engine = child(process, "EngineCore") or process
        children = process.children(recursive=True)
        (process if victim == "replica" else engine).kill()
        start = time.monotonic()
        _, alive = psutil.wait_procs([process, *children], timeout=60)
        left_s = round(time.monotonic() - start, 1)
        code = driver.wait(900)
    rows = [row for part in (folder / "out/data").glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    ids = sorted(int(row["id"].partition(":")[2]) for row in rows)
    said = [line for line in (folder / "log").read_text().splitlines() if "engine died" in line]
    return {
        "victim": victim,
        "children": len(children),
        "ended_s": left_s,
        "left_alive": len(alive),
        "exit": code,
        "rows": len(rows),
        "exact": ids == list(range(count)),
        "said": said[:2],
    }


def main():
    folder, model = Path(sys.argv[1]), sys.argv[2]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    for victim in sys.argv[4:] or ("replica", "engine"):
        print("RESULT", json.dumps(run(folder / victim, model, count, victim)), flush=True)


if __name__ == "__main__":
    main()
