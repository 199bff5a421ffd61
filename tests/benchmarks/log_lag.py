"""How late a job's lines are on the terminal, and how long a burst of them takes, beside `ray job logs -f`.

usage: log_lag.py [ROUNDS]

Brings up a local stack of its own. **Lag**: a job prints the time, 200 times at irregular moments (0.25 s apart in the
mean); `rayferry logs -f --raw` and `ray job logs -f` follow it at once, each as a process of its own whose pipe is
read here. **Burst**: a job prints 100,000 lines as fast as it can, once its follower has shown that it is there;
seconds from then until the follower has ended, after all lines, in order, each once. The two take turns at who is
first, ROUNDS times (default 5) after one that does not count.
"""

import os
import shlex
import statistics
import subprocess
import sys
import threading
import time

from own_stack import BIN, run_on_stack
from ray.job_submission import JobSubmissionClient

NUM_STAMPS = 200
NUM_LINES = 100_000
STAMPS = f"""
import random, time
for _ in range({NUM_STAMPS}):
    time.sleep(random.expovariate(4))
    print("stamp", time.time(), flush=True)
"""
BURST = f"""
import pathlib, sys, time
print("ready", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
for n in range({NUM_LINES}):
    print("line", n, "." * (n % 100))
"""
BURST_LINES = [f"line {n} " + "." * (n % 100) for n in range(NUM_LINES)]
FOLLOWERS = {"rayferry": ["rayferry", "logs", "-f", "--raw"], "ray": ["ray", "job", "logs", "-f"]}


class Follower:
    """A process that follows a job, and what it has shown: (time, line)."""

    def __init__(self, side, submission_id):
        self.shown = []
        self.ready = threading.Event()
        name, *rest = FOLLOWERS[side]
        self.process = subprocess.Popen(
            [BIN / name, *rest, submission_id],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},  # or Ray's lines wait for the pipe's buffer to be full
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.shown.append((time.time(), line.rstrip("\n")))
            if line == "ready\n":
                self.ready.set()

    def wait(self):
        self._reader.join()
        code = self.process.wait()
        assert code == 0, (code, self.shown[-5:])


def lags(client, folder):
    """Prints how late each follower showed each time stamp."""
    script = folder / "stamps.py"
    script.write_text(STAMPS)
    name = client.submit_job(entrypoint=shlex.join([sys.executable, str(script)]))
    followers = {side: Follower(side, name) for side in FOLLOWERS}
    for side, follower in followers.items():
        follower.wait()
        late = [at - float(line.split()[1]) for at, line in follower.shown if line.startswith("stamp ")]
        assert len(late) == NUM_STAMPS, len(late)
        # those that were printed before the follower was there say nothing of it
        late = sorted(late[NUM_STAMPS // 10 :])
        median, most = statistics.median(late), late[-1]
        print(f"RESULT lag {side} median {median:.2f} s, 90 % {late[len(late) * 9 // 10]:.2f} s, max {most:.2f} s")


def burst(side, client, folder):
    """Seconds from the first line printed to the follower's end."""
    script, go = folder / "burst.py", folder / f"go-{time.time_ns()}"
    script.write_text(BURST)
    name = client.submit_job(entrypoint=shlex.join([sys.executable, str(script), str(go)]))
    follower = Follower(side, name)
    assert follower.ready.wait(60), follower.shown
    time.sleep(3)  # both have come to wait for more
    start = time.time()
    go.touch()
    follower.wait()
    seconds = time.time() - start
    assert [line for _, line in follower.shown if line.startswith("line ")] == BURST_LINES
    return seconds


def run(folder, stack, rounds):
    client = JobSubmissionClient(stack.address)
    lags(client, folder)
    times = {side: [] for side in FOLLOWERS}
    for number in range(rounds + 1):
        for side in list(FOLLOWERS)[:: 1 if number % 2 else -1]:
            seconds = burst(side, client, folder)
            if number:
                times[side].append(seconds)
    for side, seconds in times.items():
        print("RESULT burst", side, f"median {statistics.median(seconds):.2f} s", [round(one, 2) for one in seconds])
    ratios = [ours / theirs for ours, theirs in zip(times["rayferry"], times["ray"], strict=True)]
    print(f"RESULT burst ratio median {statistics.median(ratios):.2f}", [round(ratio, 2) for ratio in ratios])


if __name__ == "__main__":
    run_on_stack(lambda folder, stack: run(folder, stack, int(sys.argv[1]) if len(sys.argv) > 1 else 5))
