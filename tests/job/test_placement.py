import json
import re
from pathlib import Path

import pytest
import ray
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from ray.util import placement_group_table

from rayferry.job import placement
from rayferry.job.errors import JobError
from rayferry.job.placement import Node, Placement, ReplicaGroups, can_grow, most_here, most_nodes, plan, plan_here

H100 = frozenset({"H100"})
A10G = frozenset({"A10G"})
CPU_NODE = Node(8)


def gpus(num_gpus, num_cpus=64, kind=frozenset()):
    return Node(num_cpus, num_gpus, kind)


@pytest.fixture
def place(make_spec):
    """The placement of a job with these changes on these nodes."""

    def placed(nodes, *, autoscaling=False, most=None, **changes):
        return plan(make_spec(**changes), nodes, autoscaling=autoscaling, most=most)

    return placed


@pytest.mark.parametrize(
    ("resources", "node"),
    [
        ({"CPU": 8.0, "memory": 1e9, "node:10.0.0.1": 1.0}, Node(8)),
        ({"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}, Node(8, 2, H100)),
        ({"GPU": 1.0}, Node(0, 1)),
        ({}, Node(0)),
    ],
)
def test_a_node_is_read_from_rays_table(resources, node):
    assert Node.from_ray(resources, {"ray.io/node-id": "4f2a"}) == node


def test_one_gpu_a_replica_is_asked_of_the_actor_itself(place):
    assert place([gpus(4)]) == Placement("gpu", {"num_cpus": 0, "num_gpus": 1})


def test_several_gpus_a_replica_are_asked_of_the_actor_in_a_group_of_its_own(place):
    found = place([gpus(4)], engine={"tensor_parallel_size": 2, "pipeline_parallel_size": 2})
    assert found == Placement("gpu", {"num_cpus": 0, "num_gpus": 4}, {"GPU": 4})


def test_replicas_that_come_and_go_leave_no_group_behind(place):
    changing = {"replicas": {"min": 1, "max": 2}, "engine": {"tensor_parallel_size": 2}}
    assert place([gpus(4)], **changing) == Placement("gpu", {"num_cpus": 0, "num_gpus": 2})


def test_engines_that_share_a_gpu_each_ask_for_their_part_of_it(place):
    shared = place([gpus(4)]).shared(4)
    assert (shared.actor_args, shared.engines_per_gpu) == ({"num_cpus": 0, "num_gpus": 0.25}, 4)
    assert shared.bundle == {"GPU": 1}


def test_engines_that_share_a_gpu_of_a_model_find_it_in_their_group(place):
    shared = place([gpus(4, kind=H100)], resources={"accelerator_type": "H100"}).shared(2)
    assert shared.actor_args == {"num_cpus": 0, "num_gpus": 0.5, "accelerator_type": "H100"}
    assert shared.bundle == {"GPU": 1, "accelerator_type:H100": 0.002}


def test_replicas_on_cpus_share_no_gpu(place):
    placement = place([CPU_NODE])
    assert placement.shared(4) == placement


def test_a_gpu_model_is_asked_of_the_actor(place):
    found = place([gpus(1, kind=A10G), gpus(1, kind=H100)], resources={"accelerator_type": "H100"})
    assert found.actor_args == {"num_cpus": 0, "num_gpus": 1, "accelerator_type": "H100"}


def test_a_gpu_model_is_in_the_group_of_who_asks_for_it(place):
    found = place([gpus(2, kind=H100)], resources={"accelerator_type": "H100"}, engine={"tensor_parallel_size": 2})
    assert found.actor_args == {"num_cpus": 0, "num_gpus": 2, "accelerator_type": "H100"}
    assert found.bundle == {"GPU": 2, "accelerator_type:H100": 0.001}


@pytest.mark.parametrize(
    ("nodes", "replicas", "num_cpus"),
    [
        ([Node(8)], 1, 7),
        ([Node(8)], 2, 3),
        ([Node(8), Node(8)], 2, 7),
        ([Node(8), Node(4)], 2, 3),
        ([Node(8), Node(8)], 3, 3),
        ([Node(2)], 1, 1),
        ([Node(1)], 1, 0),
        ([Node(2)], 2, 0),
        ([Node(0), Node(8)], 1, 7),
        ([], 1, 0),
    ],
)
def test_without_gpus_replicas_share_the_cpus_and_leave_one(place, nodes, replicas, num_cpus):
    found = place(nodes, replicas=replicas)
    assert (found.device, found.actor_args) == ("cpu", {"num_cpus": num_cpus})


def test_a_growing_pool_shares_the_cpus_by_its_least_size(place):
    assert place([Node(9)], replicas={"min": 2, "max": 8}).actor_args == {"num_cpus": 4}


def test_running_on_cpus_unasked_is_told(place):
    assert place([CPU_NODE]).note.startswith("no GPU on this cluster: ")


def test_running_on_cpus_as_asked_is_not_called_a_lack(place):
    assert "no GPU" not in place([gpus(8)], resources={"device": "cpu"}).note


def test_cpus_are_taken_where_they_are_asked_for_though_there_are_gpus(place):
    assert place([gpus(8)], resources={"device": "cpu"}).device == "cpu"


def test_a_cluster_that_can_grow_is_waited_for(place):
    found = place([CPU_NODE], autoscaling=True)
    assert (found.device, "waiting for the autoscaler" in found.note) == ("gpu", True)


def test_a_cluster_that_can_grow_is_refused_nothing(place):
    assert place([gpus(1)], autoscaling=True, engine={"tensor_parallel_size": 8}).bundle == {"GPU": 8}


@pytest.mark.parametrize(
    ("nodes", "changes", "message"),
    [
        ([gpus(1)], {"engine": {"tensor_parallel_size": 2}}, "tensor_parallel_size=2 needs 2 GPUs on one node"),
        ([gpus(1), gpus(1)], {"engine": {"tensor_parallel_size": 2}}, "no node has more than 1"),
        (
            [gpus(4)],
            {"engine": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}},
            "tensor_parallel_size=4 x pipeline_parallel_size=2 needs 8 GPUs",
        ),
        ([gpus(4)], {"replicas": 5}, "replicas=5 of 1 GPUs each do not fit: the cluster has room for 4"),
        ([gpus(3), gpus(3)], {"replicas": 3, "engine": {"tensor_parallel_size": 2}}, "room for 2"),
        ([gpus(4)], {"replicas": {"min": 5, "max": 9}}, "replicas=5"),
        ([gpus(4, kind=A10G)], {"resources": {"accelerator_type": "H100"}}, "choose one that the cluster has: A10G"),
        ([CPU_NODE], {"engine": {"tensor_parallel_size": 2}}, "needs GPUs, and no node has any"),
        (
            [CPU_NODE],
            {"resources": {"device": "gpu"}},
            "no node has any; use a cluster with GPUs, or set resources.device: cpu",
        ),
        ([CPU_NODE], {"engine": {"pipeline_parallel_size": 2}}, "x pipeline_parallel_size=2 needs GPUs"),
        ([gpus(4)], {"resources": {"device": "cpu"}, "engine": {"pipeline_parallel_size": 2}}, "device says cpu"),
        ([Node(2), Node(1)], {"replicas": 4}, "replicas=4 do not fit: each needs a CPU, and the cluster has 3"),
    ],
)
def test_what_can_never_be_scheduled_is_refused(place, nodes, changes, message):
    with pytest.raises(JobError) as raised:
        place(nodes, **changes)
    assert message in str(raised.value)


TP2, TP4 = {"engine": {"tensor_parallel_size": 2}}, {"engine": {"tensor_parallel_size": 4}}


@pytest.mark.parametrize(
    ("nodes", "changes", "advice", "fits"),
    [
        ([gpus(3)], {"replicas": 5}, "set replicas: 3", {"replicas": 3}),
        ([gpus(3), gpus(5)], {"replicas": 8} | TP2, "set replicas: 3", {"replicas": 3}),
        ([gpus(3)], {"replicas": {"min": 5, "max": 9}}, "set replicas.min: 3", {"replicas": {"min": 3, "max": 9}}),
        ([gpus(2)], TP4, "lower it to 2 or less", TP2),
        ([Node(2), Node(1)], {"replicas": 4}, "set replicas: 3", {"replicas": 3}),
    ],
)
def test_what_would_fit_is_told_and_does(place, nodes, changes, advice, fits):
    with pytest.raises(JobError, match=re.escape(f"; {advice}, or ")):
        place(nodes, **changes)
    assert place(nodes, **changes | fits)


def test_a_gpu_model_that_is_asked_for_is_never_replaced_by_cpus(place):
    with pytest.raises(JobError, match="H100"):
        place([CPU_NODE], resources={"accelerator_type": "H100"})


@pytest.mark.parametrize(
    ("nodes", "changes"),
    [
        ([gpus(4)], {"replicas": 4}),
        ([gpus(2), gpus(2)], {"replicas": 2, "engine": {"tensor_parallel_size": 2}}),
        ([gpus(2)], {"replicas": {"min": 1, "max": 8}}),
        ([gpus(2, num_cpus=3)], {"engine": {"tensor_parallel_size": 2}}),
        ([CPU_NODE, gpus(1, num_cpus=1)], {}),
    ],
)
def test_what_just_fits_is_placed(place, nodes, changes):
    assert place(nodes, **changes).device == "gpu"


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ({}, False),
        ({"autoscaler_report": None}, False),
        ({"autoscaler_report": {"active_nodes": {"node_4f2a": 1}}}, False),
        ({"autoscaler_report": {"active_nodes": {"gpu-worker": 1}}}, True),
        ({"autoscaler_report": {"active_nodes": {"node_4f2a": 1}, "idle_nodes": {"head-group": 1}}}, True),
        ({"autoscalerReport": {"activeNodes": {"gpu-worker": 1}}}, True),
        ({"autoscalerReport": {"activeNodes": {"node_1": 1}, "idleNodes": {}}}, False),
    ],
)
def test_node_types_tell_whether_a_cluster_can_grow(status, found):
    assert can_grow([CPU_NODE], status) is found


@pytest.mark.parametrize(
    ("labels", "found"), [({"ray.io/node-group": "head"}, True), ({"ray.io/node-id": "4f2a"}, False), (None, False)]
)
def test_the_second_autoscalers_label_tells_it_too(labels, found):
    assert can_grow([Node.from_ray({"CPU": 4.0}, labels)], {}) is found


def test_every_replica_gets_a_group_of_its_own(cluster):
    groups = ReplicaGroups({"CPU": 0.01})
    make = groups.as_remote_args_fn()
    strategies = [make()["scheduling_strategy"] for _ in range(2)]
    groups.remove()
    assert strategies[0].placement_group.id != strategies[1].placement_group.id


def test_a_group_lies_on_one_node(cluster):
    groups = ReplicaGroups({"CPU": 0.01})
    strategy = groups.as_remote_args_fn()()["scheduling_strategy"]
    ray.get(strategy.placement_group.ready(), timeout=30)
    table = placement_group_table(strategy.placement_group)
    groups.remove()
    assert table["strategy"] == "STRICT_PACK"


def test_groups_are_given_back(cluster):
    groups = ReplicaGroups({"CPU": 0.01})
    group = groups.as_remote_args_fn()()["scheduling_strategy"].placement_group
    groups.remove()
    groups.remove()
    assert placement_group_table(group)["state"] == "REMOVED"


def cluster_file(**changes):
    gpu = {"resources": {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}, "max_workers": 4}
    types = {"head": {"resources": {"CPU": 4}, "max_workers": 0}, "gpu-1": gpu}
    return {"max_workers": 4, "head_node_type": "head", "available_node_types": types} | changes


L4 = Node(8, 1, frozenset({"L4"}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [L4] * 4),
        ({"max_workers": 1}, [L4]),
        ({"available_node_types": {"any": {"resources": {"CPU": 2}}}}, [Node(2)] * 4),
        ({"available_node_types": {"head": {"resources": {"CPU": 2}}}}, None),
        ({"available_node_types": {"any": {"resources": {}}}}, None),
        ({"available_node_types": {"any": {}}}, None),
        ({"available_node_types": {}}, None),
        ({"available_node_types": None}, None),
    ],
    ids=str,
)
def test_the_most_nodes_are_those_of_the_clusters_file(changes, expected):
    assert most_nodes(cluster_file(**changes), is_filled=True) == expected


def test_a_type_that_ray_did_not_look_up_may_have_gpus_of_which_its_file_says_nothing():
    assert most_nodes(cluster_file(), is_filled=False) is None
    types = {"a": {"resources": {"CPU": 8, "GPU": 0}}, "b": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 1}}
    told = cluster_file(available_node_types=types, max_workers=2)
    assert most_nodes(told, is_filled=False) == [Node(8), Node(8), Node(8, 1)]


def test_a_file_without_a_limit_has_rays_own():
    file = cluster_file()
    del file["max_workers"]
    assert most_nodes(file, is_filled=True) == [L4] * 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"replicas": 5}, "replicas=5 of 1 GPUs each do not fit: the cluster has room for 4"),
        ({"engine": {"tensor_parallel_size": 2}}, "no node has more than 1"),
        ({"resources": {"accelerator_type": "H100"}}, "no node has H100 GPUs; choose one that the cluster has: L4"),
    ],
)
def test_what_the_autoscaler_may_never_start_is_refused(place, changes, says):
    with pytest.raises(JobError, match=says) as caught:
        place([CPU_NODE], autoscaling=True, most=[L4] * 4, **changes)
    assert "what its autoscaler may start" in str(caught.value)


@pytest.mark.parametrize(
    ("most", "changes"),
    [
        ([L4] * 4, {"replicas": 4}),
        (None, {"replicas": 400}),
        ([Node(8, 1)], {"resources": {"accelerator_type": "H100"}}),  # a file that does not name its models
        ([L4, Node(8, 1)], {"resources": {"accelerator_type": "H100"}}),
    ],
    ids=["fits", "nobody knows", "no models", "not all models"],
)
def test_what_the_autoscaler_may_start_passes(place, most, changes):
    assert place([CPU_NODE], autoscaling=True, most=most, **changes).device == "gpu"


def test_a_cluster_that_is_known_to_start_no_gpu_runs_the_job_on_cpus(place):
    assert place([CPU_NODE], autoscaling=True, most=[Node(8)] * 3).device == "cpu"
    assert place([CPU_NODE], autoscaling=True, most=[]).device == "cpu"
    with pytest.raises(JobError, match="device: gpu needs GPUs"):
        place([CPU_NODE], autoscaling=True, most=[Node(8)], resources={"device": "gpu"})


def test_nodes_that_are_up_count_whatever_the_file_says(place):
    live = gpus(1, kind=frozenset({"A100-40G"}))
    assert place([live], autoscaling=True, most=[Node(8)]).device == "gpu"
    wanted = {"accelerator_type": "A100-40G"}
    assert place([live], autoscaling=True, most=[L4], resources=wanted).device == "gpu"


@pytest.mark.parametrize(
    ("nodes", "most", "changes", "certain"),
    [
        ([L4], None, {}, True),
        ([L4], None, {"replicas": 2}, False),
        ([CPU_NODE], [L4], {}, True),
        ([L4] * 4, [L4] * 4, {"replicas": 8}, False),  # they may be the same
        ([CPU_NODE], [Node(8, 1)], {"resources": {"accelerator_type": "H100"}}, False),
    ],
)
def test_a_placement_is_certain_where_the_nodes_are_there_or_known_to_come(place, nodes, most, changes, certain):
    assert place(nodes, autoscaling=True, most=most, **changes).is_certain is certain


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Makes this machine the head of a cluster that `ray up` started, of this file."""

    def write(content):
        path = tmp_path / "ray_bootstrap_config.yaml"
        path.write_text(content)
        monkeypatch.setattr(placement, "_LAUNCHED", path)

    return write


@pytest.mark.parametrize(("provider", "expected"), [("aws", [L4] * 4), ("gcp", None)])
def test_a_head_that_ray_up_started_knows_the_most_nodes(launched, provider, expected):
    launched(json.dumps(cluster_file(provider={"type": provider})))
    assert most_here() == expected


@pytest.mark.parametrize("content", ["", "[", "a: b", "provider: {type: aws}\navailable_node_types: [a]"])
def test_a_file_that_is_none_tells_nothing(launched, content):
    launched(content)
    assert most_here() is None


def kubernetes_answers(monkeypatch, tmp_path, answer):
    """Makes this machine the head of KubeRay's cluster `c`."""
    asked = []

    def get(client, path):
        asked.append((client._namespace, path))
        return answer()

    (tmp_path / "namespace").write_text("n\n")
    monkeypatch.setattr(placement, "_LAUNCHED", Path("/nowhere"))
    monkeypatch.setattr(placement, "_KUBERNETES", tmp_path)
    monkeypatch.setattr(KubernetesHttpApiClient, "get", get)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "c")
    return asked


def pod(**limits):
    return {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits}}]}}


def ray_cluster(*, is_autoscaled=True, **changes):
    """As KubeRay keeps it: one group of nodes with two GPUs."""
    group = {"groupName": "gpu", "replicas": 0, "minReplicas": 0, "maxReplicas": 3, "rayStartParams": {}} | changes
    spec = {
        "enableInTreeAutoscaling": is_autoscaled,
        "headGroupSpec": {"rayStartParams": {}, "template": pod(cpu="4", memory="8Gi")},
        "workerGroupSpecs": [group | {"template": pod(cpu="8", memory="8Gi", **{"nvidia.com/gpu": "2"})}],
    }
    return {"metadata": {"name": "c", "namespace": "n"}, "spec": spec}


def test_a_head_of_kuberay_knows_the_most_nodes(monkeypatch, tmp_path):
    asked = kubernetes_answers(monkeypatch, tmp_path, lambda: ray_cluster(maxReplicas=3))
    assert (most_here(), asked) == ([Node(8, 2)] * 3, [("n", "rayclusters/c")] * 2)


def test_a_raycluster_without_an_autoscaler_starts_nothing(monkeypatch, tmp_path):
    kubernetes_answers(monkeypatch, tmp_path, lambda: ray_cluster(is_autoscaled=False))
    assert most_here() == []


def test_a_raycluster_without_a_limit_is_counted_to_an_end(monkeypatch, tmp_path):
    kubernetes_answers(monkeypatch, tmp_path, lambda: ray_cluster(maxReplicas=2147483647))
    assert len(most_here()) == 10_000


def test_a_head_that_kubernetes_tells_nothing_knows_nothing(monkeypatch, tmp_path):
    def refuse():
        raise OSError("403")

    kubernetes_answers(monkeypatch, tmp_path, refuse)
    assert most_here() is None


def test_a_head_that_somebody_started_by_hand_knows_nothing(monkeypatch):
    monkeypatch.setattr(placement, "_LAUNCHED", Path("/nowhere"))
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    assert most_here() is None


def test_a_head_started_by_hand_cannot_grow(cluster, make_spec):
    with pytest.raises(JobError, match="device: gpu needs GPUs, and no node has any; use a cluster with GPUs"):
        plan_here(make_spec(resources={"device": "gpu"}))


def test_where_the_cluster_can_grow_what_its_head_knows_decides(cluster, make_spec, launched, monkeypatch):
    launched(json.dumps(cluster_file(provider={"type": "aws"})))
    monkeypatch.setattr(placement, "can_grow", lambda *_args: True)
    assert plan_here(make_spec(replicas=4)).is_certain
    with pytest.raises(JobError, match="the cluster has room for 4"):
        plan_here(make_spec(replicas=5))
