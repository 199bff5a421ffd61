"""Nothing lost, nothing twice, whatever goes wrong: real runs of the job by seeds, the engine a stub."""

import json
import os
from pathlib import Path

import pytest

from rayferry.submit.local import stack as local_stack
from rayferry.submit.local.model import demo_model

from .runs import Place, Runs
from .s3_proxy import S3Proxy

# A replica is killed while S3 loses answers; one with its board; a laptop.
FEW = (90, pytest.param(1, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow))
MANY, REAL = range(100), range(10)


def seeds(default):
    """Those of CHAOS_SEEDS, such as `17` or `0-99`, or all."""
    asked = os.environ.get("CHAOS_SEEDS")
    if asked is None:
        return list(default)
    first, _, last = asked.partition("-")
    return list(range(int(first), int(last or first) + 1))


@pytest.fixture(scope="module")
def runs(stack, tmp_path_factory):
    proxy = S3Proxy(stack.endpoint)
    place = Place(proxy, stack.environ())
    yield Runs(place, stack.endpoint, local_stack.BUCKET, tmp_path_factory.mktemp("chaos"))
    place.close()
    proxy.close()


@pytest.fixture(scope="module")
def real_runs(stack, tmp_path_factory):
    """The same with vLLM and the demo model."""
    proxy = S3Proxy(stack.endpoint)
    place = Place(proxy, stack.environ(), "vllm")
    folder = tmp_path_factory.mktemp("chaos-vllm")
    yield Runs(place, stack.endpoint, local_stack.BUCKET, folder, str(demo_model(lambda _text: None)))
    place.close()
    proxy.close()


def check(runs, seed):
    found = runs.run(seed)
    print(f"\nCHAOS_SEEDS={seed}", json.dumps(found), flush=True)
    if results := os.environ.get("CHAOS_RESULTS"):
        with Path(results).open("a") as file:
            file.write(json.dumps(found) + "\n")
    assert not found["defects"]


@pytest.mark.parametrize("seed", FEW)
def test_a_run_that_is_disturbed_is_exact_in_the_end(runs, seed):
    check(runs, seed)


@pytest.mark.slow
def test_of_two_that_start_a_run_at_once_one_runs_and_the_other_is_told_who(runs):
    codes, said = runs.at_once("run-here", "run-there")
    winner = ["run-here", "run-there"][codes.index(0)]
    assert sorted(codes) == [0, 1]
    assert f"{winner} is writing to this output" in said


@pytest.mark.chaos_runs
@pytest.mark.parametrize("seed", seeds(MANY))
def test_every_disturbed_run_is_exact_in_the_end(runs, seed):
    check(runs, seed)


@pytest.mark.chaos_real
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", seeds(REAL))
def test_every_disturbed_run_of_vllm_is_exact_in_the_end(real_runs, seed):
    check(real_runs, seed)
