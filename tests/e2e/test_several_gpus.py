"""Replicas on several GPUs each: vLLM's own workers as a replica starts them, and what becomes of one that dies."""

import pytest

from .conftest import run_script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(model, tmp_path_factory):
    return run_script("several_gpus_job.py", model, tmp_path_factory.mktemp("several"))


def test_each_of_two_replicas_has_two_workers_of_its_own(seen):
    assert seen["workers"] == [2, 2]


def test_each_has_a_placement_group_of_its_own_on_one_node(seen):
    assert seen["groups"] == [["STRICT_PACK", [{"GPU": 2.0}]]] * 2


def test_every_row_is_answered_once_though_a_worker_was_killed(seen):
    assert seen["answers"] == sorted(f"prompt number {number} {at} is" for number in range(8) for at in range(12))
    assert seen["lives"] == 3


def test_nothing_is_left_behind(seen):
    assert (seen["states"], seen["left"]) == (["REMOVED"], [])
