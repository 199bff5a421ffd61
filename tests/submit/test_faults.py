"""Jobs of a real cluster behind a proxy that fails: each ends with its true end, its log whole and once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from rayferry.job.spec import parse
from rayferry.submit import follow as follow_module
from rayferry.submit import transport as transport_module
from rayferry.submit.client import Cluster, ClusterError
from rayferry.submit.collect import exit_code
from rayferry.submit.follow import follow
from rayferry.submit.request import build_request, new_submission_id

from .fault_proxy import FaultProxy

NUM_LINES = 400
PROGRAM = """
import sys, time
for n in range({lines}):
    print("line", n, "\u00e9" * (n % 50), flush=True)
    if n % 40 == 0:
        time.sleep(0.15)
sys.exit({code})
"""
LINES = [f"line {n} " + "\u00e9" * (n % 50) for n in range(NUM_LINES)]
CODES = {0: ("SUCCEEDED", 0), 1: ("FAILED", 1), 3: ("FAILED", 3), 6: ("FAILED", 6)}
FEW, MANY = range(4), range(200)


@pytest.fixture
def patient(monkeypatch):
    """Time-outs short beside the proxy's stalls."""
    monkeypatch.setattr(transport_module, "_TIMEOUT_S", (2, 3))
    monkeypatch.setattr(transport_module, "_HEARTBEAT_S", 2.0)
    monkeypatch.setattr(follow_module, "_POLL_S", 0.3)
    monkeypatch.setattr(follow_module, "_FIRST_POLL_S", 0.2)


def one_run(stack, seed, *, away_s=0.0, **options):
    """Sends and follows a job; gives what was seen, and the proxy's faults."""
    place = urlsplit(stack.address)
    proxy = FaultProxy((place.hostname, place.port), seed, **options)
    uris = {"input": {"uri": "s3://rayferry/none"}, "output": {"uri": f"s3://rayferry/none-{seed}"}}
    request = build_request(
        parse({"name": "faults", "model": "m"} | uris, "here"), proxy.url, new_submission_id(f"faults-{seed}")
    )
    code = list(CODES)[seed % len(CODES)]
    program = PROGRAM.format(lines=NUM_LINES, code=code)
    request = replace(request, entrypoint=f"python -c '{program}'")
    shown = []

    def show(line):
        shown.append(line)
        if away_s and line.startswith("line 80 "):
            threading.Thread(target=proxy.away, args=[away_s]).start()

    try:
        for _ in range(5):  # a command that fails before it sent anything is given again
            try:
                cluster = Cluster(proxy.url)
                break
            except ClusterError:
                continue
        cluster.submit(request, sleep=lambda s: follow_module.time.sleep(min(s, 1)))
        info = follow(cluster, request.submission_id, show)
        jobs = [job for job in Cluster(stack.address).jobs() if job.submission_id == request.submission_id]
        return (
            (info.status, exit_code(info)),
            [line for line in shown if line.startswith("line")],
            len(jobs),
            proxy.done,
        )
    finally:
        proxy.close()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "seeds", [FEW, pytest.param(MANY, marks=[pytest.mark.chaos, pytest.mark.timeout(3600)])], ids=len
)
def test_every_job_behind_a_failing_proxy_ends_truly_with_its_log_once(stack, seeds):
    with ThreadPoolExecutor(6) as pool:
        runs = dict(zip(seeds, pool.map(lambda seed: one_run(stack, seed), seeds), strict=True))
    wrong = {
        seed: (end, num_jobs, faults, len(shown), [line for line in LINES if shown.count(line) != 1][:5])
        for seed, (end, shown, num_jobs, faults) in runs.items()
        if (end, shown, num_jobs) != (list(CODES.values())[seed % len(CODES)], LINES, 1)
    }
    assert wrong == {}
    assert sum(len(faults) for _, _, _, faults in runs.values()) > len(seeds)


@pytest.mark.usefixtures("patient")
def test_a_dashboard_that_is_away_for_a_while_costs_no_line(stack):
    end, shown, num_jobs, _ = one_run(stack, 2, away_s=6.0, num_faults=0)
    assert (end, shown, num_jobs) == (CODES[3], LINES, 1)
