"""What `rayferry submit` adds over `ray job submit`: seconds from the start of the command to the job RUNNING.

usage: submit_overhead.py [PAIRS]

Brings up a local stack of its own. Both commands start the same entrypoint with the same package and runtime_env, in
turn, PAIRS times (default 7) after one pair that does not count; the job is stopped once it is RUNNING. RUNNING is
what the Jobs API says, asked every 20 ms by this process for both. `rayferry submit` makes its checks of the cluster,
the input, the output and the model in that time; `ray job submit` checks nothing.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time

from own_stack import BIN, run_on_stack
from ray.job_submission import JobSubmissionClient

from rayferry.submit import s3
from rayferry.submit.options import load_job
from rayferry.submit.request import build_request

ASK_EVERY_S = 0.02


def measure(command, submission_id, client):
    """Seconds from the start of the command until the job is RUNNING."""
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        with contextlib.suppress(RuntimeError):  # not there yet
            if client.get_job_status(submission_id) != "PENDING":
                break
        time.sleep(ASK_EVERY_S)
    seconds = time.time() - start
    process.wait()
    client.stop_job(submission_id)
    while client.get_job_status(submission_id) in {"PENDING", "RUNNING"}:
        time.sleep(ASK_EVERY_S)
    return seconds


def main():
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    run_on_stack(lambda folder, stack: run(folder, stack, pairs))


def run(folder, stack, pairs):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    s3.write_bytes("s3://rayferry/in/prompts.txt", b"hello\n")
    job = folder / "job.json"
    spec = {"name": "overhead", "model": str(folder / "model")}
    spec |= {"input": {"uri": "s3://rayferry/in/"}, "output": {"uri": "s3://rayferry/out/"}}
    job.write_text(json.dumps(spec))
    client = JobSubmissionClient(stack.address)
    times = {"rayferry": [], "ray": []}
    for pair in range(pairs + 1):
        request = build_request(load_job(job), stack.address, f"ray-{pair}")
        package = folder / request.package["name"]
        package.write_bytes(request.content)
        env = json.dumps({"env_vars": request.runtime_env["env_vars"]})
        ray = [str(BIN / "ray"), "job", "submit", "--no-wait", "--address", stack.address]
        commands = {
            "rayferry": [str(BIN / "rayferry"), "submit", str(job), "--no-wait"],
            "ray": [*ray, "--working-dir", str(package), "--runtime-env-json", env],
        }
        for side, command in commands.items():
            name = f"{side}-{pair}"
            rest = ["--submission-id", name] + (["--", request.entrypoint] if side == "ray" else [])
            seconds = measure([*command, *rest], name, client)
            if pair:
                times[side].append(seconds)
    for side, seconds in times.items():
        print("RESULT", side, f"median {statistics.median(seconds):.2f} s", [round(second, 2) for second in seconds])
    added = [ours - theirs for ours, theirs in zip(times["rayferry"], times["ray"], strict=True)]
    print("RESULT added", f"median {statistics.median(added):+.2f} s", [round(second, 2) for second in added])


if __name__ == "__main__":
    main()
