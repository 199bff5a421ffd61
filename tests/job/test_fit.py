"""Whether a model fits: checkpoints in the real format, and GPUs of made-up sizes."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rayferry.job import fit
from rayferry.job.errors import EngineError
from rayferry.job.fit import Gpu, Model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
}
NUM = 3000  # numbers in a tensor
GIB = 1 << 30


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with these tensors by file; and its config."""

    def write(config=None, **files):
        for name, tensors in files.items():
            save_file(tensors, tmp_path / f"{name}.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
        return tmp_path

    return write


def tensor(dtype):
    return np.zeros((NUM // 10, 10), dtype)


@pytest.fixture
def num_bytes(make_spec):
    def measured(folder, **options):
        found = fit.read(make_spec(), str(folder), options)
        return found and found.num_bytes

    return measured


@pytest.mark.parametrize(
    ("dtype", "options", "bytes_each"),
    [
        ("float16", {}, 2),
        ("float32", {}, 2),  # vLLM's dtype: auto makes half of it
        ("float32", {"dtype": "float32"}, 4),
        ("float16", {"dtype": "float32"}, 4),
        ("float32", {"dtype": "bfloat16"}, 2),
        ("int32", {}, 4),  # packed by a quantization of the checkpoint's own
        ("uint8", {"dtype": "float32"}, 1),
        ("float16", {"load_format": "safetensors"}, 2),
    ],
)
def test_weights_are_counted_as_they_are_loaded(checkpoint, num_bytes, dtype, options, bytes_each):
    assert num_bytes(checkpoint(model={"a": tensor(dtype)}), **options) == NUM * bytes_each


def test_all_files_and_tensors_count(checkpoint, num_bytes):
    half = tensor("float16")
    assert num_bytes(checkpoint(a={"a": half, "b": half}, b={"c": half})) == 3 * NUM * 2


def test_only_what_the_index_names_counts(checkpoint, num_bytes):
    half = tensor("float16")
    folder = checkpoint(a={"a": half}, b={"b": half}, other={"c": half})
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert num_bytes(folder) == 2 * NUM * 2


def test_a_second_form_of_the_weights_does_not_count(checkpoint, num_bytes):
    half = tensor("float16")
    assert num_bytes(checkpoint(model={"a": half}, consolidated={"a": half})) == NUM * 2


@pytest.mark.parametrize(
    "options",
    [{"quantization": "fp8"}, {"load_format": "dummy"}, {"cpu_offload_gb": 4}, {"hf_overrides": {"num_layers": 2}}],
)
def test_weights_that_are_changed_or_elsewhere_are_not_judged(checkpoint, num_bytes, options):
    assert num_bytes(checkpoint(model={"a": tensor("float16")}), **options) is None


def test_a_checkpoint_without_safetensors_is_not_judged(checkpoint, num_bytes):
    assert num_bytes(checkpoint()) is None
    assert num_bytes(checkpoint(consolidated={"a": tensor("float16")})) is None


def judged(make_spec, weights, gpu, config=None, **engine):
    spec = make_spec(model="big", engine=engine)
    return fit.judge(spec, Model(weights * GIB, CONFIG | (config or {})), Gpu(int(gpu * GIB), 0.9))


def test_a_model_that_is_too_large_is_told_with_what_would_hold_it(make_spec):
    assert judged(make_spec, 115, 80) == (
        "model 'big' does not fit: its weights have 115.0 GiB, a GPU here has 80.0 GiB, of which 0.9 may be used: "
        "72.0 GiB; engine.tensor_parallel_size: 2 would hold it (2 x 72.0 GiB)"
    )


@pytest.mark.parametrize(
    ("weights", "engine", "size"),
    [
        (130, {}, 4),  # two would leave no room for a KV cache, and three do not divide the KV heads
        (200, {}, 4),
        (400, {"tensor_parallel_size": 4}, 12),
        (400, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 4),
    ],
)
def test_the_least_size_that_divides_the_model_and_leaves_room_is_told(make_spec, weights, engine, size):
    told = judged(make_spec, weights, 80, **engine)
    gpus = size * engine.get("pipeline_parallel_size", 1)
    assert f"; engine.tensor_parallel_size: {size} would hold it ({gpus} x 72.0 GiB)" in told


@pytest.mark.parametrize("config", [{}, {"num_attention_heads": 7, "num_key_value_heads": 7, "intermediate_size": 5}])
def test_where_no_size_would_do_other_ways_are_told(make_spec, config):
    told = judged(make_spec, 10_000, 80, config)
    assert told.endswith("take larger GPUs, a quantized model, or a larger engine.pipeline_parallel_size (now 1)")


@pytest.mark.parametrize(
    ("weights", "config", "engine"),
    [
        (60, {}, {}),
        (79, {}, {}),  # a little too large: vLLM may leave some of it out
        (130, {}, {"tensor_parallel_size": 2}),
        (250, {}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
        (115, {"architectures": ["Qwen2VLForConditionalGeneration"]}, {}),
        (115, {"vision_config": {"depth": 3}}, {}),
        (115, {"architectures": None}, {}),
    ],
)
def test_what_may_fit_is_left_to_vllm(make_spec, weights, config, engine):
    assert judged(make_spec, weights, 80, config, **engine) == ""


def test_a_job_whose_model_is_too_large_ends_before_it_is_loaded(checkpoint, make_spec):
    folder = checkpoint(model={"a": tensor("float16")})
    with pytest.raises(EngineError, match="does not fit"):
        fit.check(make_spec(), str(folder), {}, lambda: Gpu(NUM, 0.9))
    fit.check(make_spec(), str(folder), {}, lambda: Gpu(NUM * 3, 0.9))


def broken():
    raise RuntimeError("no such driver")


@pytest.mark.parametrize("ask", [lambda: None, broken], ids=["no GPU that is known", "no answer"])
def test_a_gpu_that_cannot_be_asked_ends_no_job(checkpoint, make_spec, ask):
    folder = checkpoint(model={"a": tensor("float16")})
    fit.check(make_spec(model=str(folder)), str(folder), {}, ask)
    assert fit.sizes(make_spec(model=str(folder)), ask) == ""


@pytest.mark.parametrize("content", [b"", b"\xff" * 30, b"\x08\0\0\0\0\0\0\0not JSON"])
def test_a_damaged_checkpoint_is_left_to_vllm(checkpoint, make_spec, content):
    folder = checkpoint()
    (folder / "model.safetensors").write_bytes(content)
    fit.check(make_spec(), str(folder), {}, lambda: Gpu(1, 0.9))


def test_a_load_that_ran_out_of_memory_is_told_the_numbers(checkpoint, make_spec):
    spec = make_spec(model=str(checkpoint(model={"a": tensor("float16")})), engine={"tensor_parallel_size": 2})
    assert fit.sizes(spec, lambda: Gpu(80 * GIB, 0.9)) == (
        "Its weights have 0.0 GiB, a GPU here has 80.0 GiB, of which 0.9 may be used: 72.0 GiB, 144.0 GiB on 2 GPUs. "
    )
