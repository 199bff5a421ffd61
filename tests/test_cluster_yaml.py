"""The cluster file, by Ray's own validator and EC2's own parameter check. No call leaves this machine."""

import re
from pathlib import Path

import boto3
import botocore.client
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from rayferry.job.placement import can_grow

TEXT = (Path(__file__).parents[1] / "cluster.yaml").read_text()
GPU_FAMILY = re.compile(r"(g\d|p\d)")  # EC2's accelerated families that NVIDIA's GPUs are in


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(_self, operation, _parameters):
        pytest.fail(f"asked AWS: {operation}")

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)


@pytest.fixture
def config():
    """What `ray up` makes of the file before it first asks AWS."""
    return prepare_config(yaml.safe_load(TEXT))


@pytest.fixture
def head(config):
    return config["available_node_types"][config["head_node_type"]]


@pytest.fixture
def workers(config):
    types = config["available_node_types"]
    return {name: node for name, node in types.items() if name != config["head_node_type"]}


def test_ray_accepts_it(config):
    validate_config(config)


def test_the_user_edits_two_places():
    marked = [line for line in TEXT.splitlines() if re.search(r"# EDIT \d of 2", line)]
    assert [line.split(":")[0].strip() for line in marked] == ["region", "Arn"]


def test_the_region_is_told_once():
    named = re.findall(r"\b[a-z]{2}-[a-z]+-\d[a-z]?\b", TEXT)
    assert named == [yaml.safe_load(TEXT)["provider"]["region"]]
    assert not re.search(r"\bami-[0-9a-f]+", TEXT), "a machine image's id holds in one region only"


def test_the_account_is_told_once():
    assert len(re.findall(r"\barn:aws:iam::\d{12}:", TEXT)) == 1


def test_every_node_has_the_instance_profile(config):
    profiles = {node["node_config"]["IamInstanceProfile"]["Arn"] for node in config["available_node_types"].values()}
    assert len(profiles) == 1
    assert re.fullmatch(r"arn:aws:iam::\d{12}:instance-profile/.+", profiles.pop())


def test_the_head_has_no_gpu(head):
    assert not GPU_FAMILY.match(head["node_config"]["InstanceType"])
    assert not head["resources"].get("GPU")
    assert head["max_workers"] == 0


def test_workers_have_gpus_and_start_from_none(config, workers):
    assert workers
    for node in workers.values():
        assert GPU_FAMILY.match(node["node_config"]["InstanceType"])
        assert node["min_workers"] == 0
        assert 1 <= node["max_workers"] <= config["max_workers"]


def test_only_workers_ask_docker_for_gpus(config):
    docker = config["docker"]
    assert "--gpus=all" in docker["worker_run_options"]
    assert not any("gpu" in option for option in docker["run_options"] + docker.get("head_run_options", []))


def test_a_cluster_without_a_gpu_node_counts_as_one_that_can_grow(config):
    report = {"active_nodes": {config["head_node_type"]: 1}}
    assert can_grow([], {"autoscaler_report": report})
    assert not any(name.startswith("node") for name in config["available_node_types"])


def test_the_image_holds_the_ray_that_is_tested_here(config):
    assert config["docker"]["image"].startswith(f"rayproject/ray-llm:{ray.__version__}-")


def test_nothing_is_installed_over_the_image(config):
    commands = config["setup_commands"] + config["head_setup_commands"] + config["worker_setup_commands"]
    assert commands == []


def test_ec2_knows_every_field(config):
    client = boto3.client("ec2", region_name="us-west-2", aws_access_key_id="none", aws_secret_access_key="none")
    shape = client.meta.service_model.operation_model("RunInstances").input_shape
    for name, node in config["available_node_types"].items():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_dashboard_is_reached_by_the_tunnel_only(config):
    start = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
