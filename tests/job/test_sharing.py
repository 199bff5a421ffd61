import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rayferry.job import sharing, storage
from rayferry.job.sharing import Room, engines_per_gpu, share_of_memory, with_engines
from rayferry.job.spec import ReplicaRange

GIB = 1 << 30
SMALL, MIDDLE, LARGE = int(0.25 * GIB), 5 * GIB, 13 * GIB


def room(weight_bytes, **changes):
    return Room(**{"gpu_bytes": 140 * GIB, "cpus_per_gpu": 16, "weight_bytes": weight_bytes} | changes)


@pytest.mark.parametrize(
    ("there", "num_rows", "expected"),
    [
        pytest.param(room(SMALL), 6000, 4, id="a small model"),
        pytest.param(room(MIDDLE), 6000, 2, id="a middling one"),
        pytest.param(room(LARGE), 6000, 1, id="one that keeps the GPU busy"),
        pytest.param(room(SMALL, gpu_bytes=4 * GIB), 6000, 2, id="a small GPU"),
        pytest.param(room(SMALL), 1200, 2, id="few rows"),
        pytest.param(room(SMALL), 900, 1, id="too few rows"),
        pytest.param(room(SMALL, cpus_per_gpu=4), 6000, 2, id="few CPUs"),
        pytest.param(room(SMALL, cpus_per_gpu=2), 6000, 1, id="too few CPUs"),
        pytest.param(room(None), 6000, 1, id="weights that are not seen"),
        pytest.param(room(SMALL, gpu_bytes=0), 6000, 1, id="a GPU that is not seen"),
    ],
)
def test_engines_share_a_gpu_where_each_leaves_most_of_it_idle(there, num_rows, expected):
    assert engines_per_gpu(there, num_rows)[0] == expected


def test_why_engines_share_is_told_with_the_key_to_change():
    _, why = engines_per_gpu(room(SMALL), 6000)
    assert why == (
        "4 engines share each GPU: the model has 0.3 GB of weights, a GPU 150 GB (resources.engines_per_gpu)"
    )


def test_a_number_that_is_given_is_taken(make_spec):
    assert sharing.chosen(make_spec(resources={"engines_per_gpu": 3}), 10) == (3, "")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"engine": {"tensor_parallel_size": 2}}, id="several GPUs each"),
        pytest.param({"task": "embed"}, id="nothing is generated"),
    ],
)
def test_where_sharing_is_of_no_use_nobody_is_asked(make_spec, changes):
    assert sharing.chosen(make_spec(**changes), 10_000) == (1, "")


@pytest.mark.parametrize(("replicas", "expected"), [(2, 8), ({"min": 1, "max": 3}, ReplicaRange(min=4, max=12))])
def test_every_engine_is_a_replica_of_the_pool(make_spec, replicas, expected):
    shared = with_engines(make_spec(replicas=replicas), 4)
    assert (shared.replicas, shared.resources.engines) == (expected, 4)


@pytest.fixture
def folder(tmp_path):
    """A model's folder of a million numbers, 2 MB as they are loaded."""
    save_file({"a": np.zeros((1000, 1000), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "tokenizer.json").write_bytes(bytes(1 << 20))
    return tmp_path


def test_weights_are_counted_without_what_lies_beside_them(make_spec, folder):
    assert sharing.weight_bytes(make_spec(model=str(folder))) == 2_000_000


def test_weights_that_are_not_there_are_not_known(make_spec, tmp_path):
    assert sharing.weight_bytes(make_spec(model=str(tmp_path))) is None


def test_weights_under_s3_are_counted_where_they_lie(make_spec, bucket_uri):
    files, path = storage.filesystem(f"{bucket_uri}/model/")
    for name, num_bytes in (("a.safetensors", 30), ("b.safetensors", 12), ("tokenizer.json", 100)):
        with files.open_output_stream(f"{path.rstrip('/')}/{name}") as stream:
            stream.write(bytes(num_bytes))
    assert sharing.weight_bytes(make_spec(model=f"{bucket_uri}/model/")) == 42


def test_an_engine_alone_has_vllms_own_share(make_spec):
    assert share_of_memory(make_spec()) == {}


def test_each_engine_takes_its_share_of_the_memory(make_spec, folder, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", lambda: [100 << 20, 80 << 20])
    share = share_of_memory(make_spec(model=str(folder), resources={"engines_per_gpu": 4}))
    assert share == {"gpu_memory_utilization": 0.225, "kv_cache_memory_bytes": int(0.7 * (18 * (1 << 20) - 2_000_000))}


def test_a_share_that_the_job_sets_is_divided(make_spec, folder, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", list)
    spec = make_spec(model=str(folder), resources={"engines_per_gpu": 2}, engine={"gpu_memory_utilization": 0.5})
    assert share_of_memory(spec) == {"gpu_memory_utilization": 0.25}


def test_a_node_without_a_driver_tells_no_memory(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert sharing.memory_of_gpus() == []


def test_a_look_at_this_node_tells_its_weights_and_cpus(make_spec, folder, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", lambda: [5, 3])
    found = sharing.look(make_spec(model=str(folder)), num_gpus=2, num_cpus=2)
    assert found == Room(gpu_bytes=3, cpus_per_gpu=1, weight_bytes=2_000_000)
