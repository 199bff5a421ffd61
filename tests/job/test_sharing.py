import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rayferry.job import sharing, storage
from rayferry.job.errors import EngineError
from rayferry.job.fit import Model
from rayferry.job.sharing import Room, engines_per_gpu, share_of_memory, with_engines

GIB = 1 << 30
SMALL, MIDDLE, LARGE = 0.25 * GIB, 5 * GIB, 13 * GIB
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131_072,  # 16 GiB of KV cache a sequence
}


def room(weight_bytes, max_model_len=4096, config=None, **changes):
    model = weight_bytes and Model(weight_bytes, CONFIG if config is None else config)
    there = {"gpu_bytes": 126 * GIB, "cpus_per_gpu": 16, "node_bytes_per_gpu": 100 * GIB}
    return Room(**there | changes, model=model, max_model_len=max_model_len)


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
        pytest.param(room(SMALL, node_bytes_per_gpu=25 * GIB), 6000, 3, id="a node of little memory"),
        pytest.param(room(SMALL, max_model_len=None), 6000, 4, id="long sequences that a quarter holds"),
        pytest.param(room(SMALL, max_model_len=3 * 131_072), 6000, 1, id="longer ones"),
        pytest.param(room(SMALL, config={}), 6000, 1, id="sequences of unknown size"),
        pytest.param(room(None), 6000, 1, id="weights that are not seen"),
        pytest.param(room(SMALL, gpu_bytes=0), 6000, 1, id="a GPU that is not seen"),
    ],
)
def test_engines_share_a_gpu_where_each_leaves_most_of_it_idle(there, num_rows, expected):
    assert engines_per_gpu(there, num_rows)[0] == expected


def test_why_engines_share_is_told_with_the_key_to_change():
    _, why = engines_per_gpu(room(SMALL), 6000)
    assert why == (
        "4 engines share each GPU: the model has 0.3 GB of weights, of a GPU 135 GB may be used "
        "(resources.engines_per_gpu)"
    )


def test_a_number_that_is_given_is_taken(make_spec):
    assert sharing.chosen(make_spec(resources={"engines_per_gpu": 3}), 10) == (3, "")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"engine": {"tensor_parallel_size": 2}}, id="several GPUs each"),
        pytest.param({"task": "embed"}, id="nothing is generated"),
        pytest.param({"replicas": {"min": 1, "max": 2}}, id="a pool that grows"),
        pytest.param({"replicas": 20}, id="few rows for each"),
    ],
)
def test_where_sharing_is_of_no_use_nobody_is_asked(make_spec, changes):
    assert sharing.chosen(make_spec(**changes), 10_000) == (1, "")


def test_every_engine_is_a_replica_of_the_pool(make_spec):
    shared = with_engines(make_spec(replicas=2), 4)
    assert (shared.replicas, shared.resources.engines) == (8, 4)


def test_a_pool_whose_engines_are_alone_stays_as_it_is(make_spec):
    spec = make_spec(replicas={"min": 1, "max": 3})
    assert with_engines(spec, 1).replicas == spec.replicas


@pytest.fixture
def folder(tmp_path):
    """A model's folder of a million numbers, 2 MB as they are loaded."""
    save_file({"a": np.zeros((1000, 1000), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "tokenizer.json").write_bytes(bytes(1 << 20))
    return tmp_path


def test_weights_are_counted_without_what_lies_beside_them(make_spec, folder):
    assert sharing._model_of(make_spec(model=str(folder))).num_bytes == 2_000_000


def test_weights_that_are_not_there_are_not_known(make_spec, tmp_path):
    assert sharing._model_of(make_spec(model=str(tmp_path))) is None


def test_weights_under_s3_are_counted_where_they_lie(make_spec, bucket_uri):
    files, path = storage.filesystem(f"{bucket_uri}/model/")
    for name, num_bytes in (("a.safetensors", 30), ("b.safetensors", 12), ("config.json", 100)):
        with files.open_output_stream(f"{path.rstrip('/')}/{name}") as stream:
            stream.write(b" " * (num_bytes - 2) + b"{}")
    assert sharing._model_of(make_spec(model=f"{bucket_uri}/model/")) == Model(42, {})


def test_an_engine_alone_has_vllms_own_share(make_spec):
    assert share_of_memory(make_spec()) == {}


def test_each_engine_takes_its_share_of_the_memory(make_spec, folder, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", lambda: [100 << 20, 80 << 20])
    share = share_of_memory(make_spec(model=str(folder), resources={"engines_per_gpu": 4}))
    assert share == {"gpu_memory_utilization": 0.225, "kv_cache_memory_bytes": int(0.7 * (18 * (1 << 20) - 2_000_000))}


def test_what_the_job_sets_itself_is_divided(make_spec, folder, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", lambda: [80 << 20])
    engine = {"gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 1000}
    share = share_of_memory(make_spec(model=str(folder), resources={"engines_per_gpu": 2}, engine=engine))
    assert share == {"gpu_memory_utilization": 0.25, "kv_cache_memory_bytes": 500}


def test_where_weights_are_not_known_a_part_of_the_share_is_for_the_cache(make_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", lambda: [1000])
    share = share_of_memory(make_spec(model=str(tmp_path), resources={"engines_per_gpu": 2}))
    assert share == {"gpu_memory_utilization": 0.45, "kv_cache_memory_bytes": 225}


def test_a_share_that_does_not_hold_the_weights_is_refused(make_spec, folder, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", lambda: [4_000_000])
    with pytest.raises(EngineError, match="4 engines on a GPU have"):
        share_of_memory(make_spec(model=str(folder), resources={"engines_per_gpu": 4}))


def test_a_gpu_that_is_cut_up_tells_no_memory(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for told, expected in (("80, [N/A]\n40, Disabled", [80 << 20, 40 << 20]), ("80, Enabled", [])):
        tool.write_text(f"#!/bin/sh\nprintf '%s\\n' '{told}'\n")
        tool.chmod(0o755)
        assert sharing.memory_of_gpus() == expected


def test_a_node_without_a_driver_tells_no_memory(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert sharing.memory_of_gpus() == []


def test_a_look_at_this_node_tells_its_weights_and_what_is_beside_each_gpu(make_spec, folder, monkeypatch):
    monkeypatch.setattr(sharing, "memory_of_gpus", lambda: [50, 30])
    spec = make_spec(model=str(folder), engine={"gpu_memory_utilization": 0.5, "max_model_len": 9})
    found = sharing.look(spec, {"GPU": 2.0, "CPU": 2.0, "memory": 100.0})
    assert (found.gpu_bytes, found.cpus_per_gpu, found.node_bytes_per_gpu, found.max_model_len) == (15, 1, 50, 9)
    assert found.model.num_bytes == 2_000_000
