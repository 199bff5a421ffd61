"""Placement groups as a replica on several GPUs gets them: a real Ray, whose GPUs are only numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    script = Path(__file__).with_name("tensor_parallel_job.py")
    folder = tmp_path_factory.mktemp("groups")
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # else it would leave a token in the home folder
    done = subprocess.run([sys.executable, script, folder], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray says something of its own, too
    return json.loads(told)


def test_every_row_is_answered_though_a_replica_died(outcome):
    assert sum(outcome["rows"]) == 32


def test_every_replica_has_a_group_of_its_own(outcome):
    assert len({told["group"] for told in outcome["told"]}) == 2


def test_no_more_groups_are_made_than_there_are_replicas(outcome):
    assert len(outcome["states"]) == 3  # one of them of the two engines that share a GPU


def test_a_group_is_packed_on_one_node_and_has_the_gpus_of_one_replica(outcome):
    for told in outcome["told"]:
        assert (told["strategy"], told["bundles"]) == ("STRICT_PACK", [{"GPU": 2.0, "accelerator_type:H100": 0.001}])


@pytest.mark.parametrize("run", ["told", "later"])
def test_a_replica_has_all_of_its_gpus_and_no_other(outcome, run):
    first, second = [told["gpus"] for told in outcome[run]]
    assert (len(first), len(second)) == (2, 2)
    assert not {*first} & {*second}


def test_all_groups_are_removed_at_the_end(outcome):
    assert set(outcome["states"]) == {"REMOVED"}


def test_a_ray_data_that_has_no_place_for_a_group_gets_none(outcome):
    assert outcome["named"] == ["accelerator_type", "num_cpus", "num_gpus"]
    assert outcome["groups_later"] == 0
    assert [told for told in outcome["later"] if "group" in told] == []


@pytest.mark.parametrize("run", ["shared", "shared_later"])
def test_engines_that_share_a_gpu_are_two_processes_on_one_of_them(outcome, run):
    first, second = outcome[run]
    assert (first["gpus"], second["gpus"]) == (0.5, 0.5)
    assert first["pid"] != second["pid"]
    assert first["which"] == second["which"]


def test_replicas_get_the_same_part_of_few_rows(outcome):
    first, second = outcome["rows_shared"]
    assert first + second == 32
    assert abs(first - second) <= 2  # fourteen pieces, as the rows were estimated, cannot all have as many
