"""The same runs in several lanes at once, each with an S3 server and a cluster of its own, for a machine of many cores.

usage: many.py WEED RESULTS SEEDS LANES [MODEL GPUS]     such as: many.py .venv/bin/weed results.jsonl 0-89,95 6

With a model the engine is vLLM's own. Prints a line for each run, and appends it to RESULTS; see report.py.
"""

import contextlib
import json
import multiprocessing
import os
import queue
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path


def surroundings():
    """What a lane shares with nobody, such as S3's keys and Ray's token; to be set before Ray is imported."""
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # a socket's path has to be short
    (folder / "token").write_text(secrets.token_hex(32))
    return folder, {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",  # where many lanes share few cores
        "RAY_TMPDIR": str(folder),
        "RAYFERRY_STATE": str(folder / "state"),
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_REGION": "us-east-1",
    }


def lane(weed, seeds, results, model, gpus, logs):
    """Takes seeds until there are none."""
    folder, environ = surroundings()
    os.environ |= environ
    import subprocess

    import requests
    from runs import Place, Runs
    from s3_proxy import S3Proxy

    from rayferry.submit.local import stack
    from rayferry.submit.local.ports import free_ports

    ports = free_ports(10)
    (folder / "s3").mkdir()
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen([weed, *stack._weed_command(ports, folder)[1:]], stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{ports[0]}"
    for _ in range(300):
        try:
            requests.get(endpoint, timeout=5)
            break
        except requests.RequestException:
            time.sleep(0.2)
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    proxy = S3Proxy(endpoint)
    place = None
    try:
        place = Place(proxy, environ | {"AWS_ENDPOINT_URL": endpoint}, "vllm" if model else "stub", gpus)
        runs = Runs(place, endpoint, stack.BUCKET, folder, model or "stub")
        while (seed := seeds.get()) is not None:
            results.put(runs.run(seed))
            shutil.copy(folder / f"{seed}.log", logs)
    finally:
        if place is not None:
            place.close()
        server.kill()


def main():
    weed, file, asked, num_lanes, model, gpus = [*sys.argv[1:], None, "0"][:6]
    asked_seeds = []
    for piece in asked.split(","):
        first, _, last = piece.partition("-")
        asked_seeds += range(int(first), int(last or first) + 1)
    context = multiprocessing.get_context("spawn")
    seeds, results = context.Queue(), context.Queue()
    lanes = []
    logs = Path(file).with_suffix(".logs")
    logs.mkdir(exist_ok=True)
    for seed in [*asked_seeds, *[None] * int(num_lanes)]:
        seeds.put(seed)
    for _ in range(int(num_lanes)):
        lanes.append(context.Process(target=lane, args=(weed, seeds, results, model, int(gpus), logs)))
        lanes[-1].start()
    left = len(asked_seeds)
    while left and any(one.is_alive() for one in lanes):
        with contextlib.suppress(queue.Empty):
            found = results.get(timeout=5)
            left -= 1
            tell(found, file)
    sys.exit(f"{left} runs were not made" if left else 0)


def tell(found, file):
    """Prints a run, and keeps it."""
    with Path(file).open("a") as out:
        out.write(json.dumps(found) + "\n")
    print("RUN", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
