import pytest

from rayferry.job.errors import SpecError


def test_an_engine_needs_a_gpu_for_each_part_of_it(make_spec):
    assert make_spec(engine={"tensor_parallel_size": 4, "pipeline_parallel_size": 2}).engine.world_size == 8


def test_the_engine_gets_further_keys_as_they_are(make_spec):
    options = {"max_model_len": 4096, "hf_overrides": {"a": None, "b": [1]}, "something_new": "x"}
    assert make_spec(engine=options).engine.to_kwargs() == {
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        **options,
    }


@pytest.mark.parametrize("key", ["data_parallel_size_local", "max_cpu_loras", "kv_cache_memory_bytes", "load_format"])
def test_a_key_that_vllm_has_is_not_taken_for_a_misspelt_one(make_spec, key):
    assert make_spec(engine={key: 1}).engine.to_kwargs()[key] == 1


@pytest.mark.parametrize("value", [None, "mp", "uni"])
def test_who_runs_the_one_worker_of_an_engine_is_the_users_to_say(make_spec, value):
    assert make_spec(engine={"distributed_executor_backend": value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_model_length": 9}, "unknown key 'max_model_length'; did you mean 'max_model_len'?"),
        ({"tensor_paralel_size": 9}, "unknown key 'tensor_paralel_size'; did you mean 'tensor_parallel_size'?"),
        ({"model": "x"}, "'model' is set at the top level of the job file, not under engine"),
        ({"hf_token": "x"}, "'hf_token': a secret has no place in a job file"),
        ({"hub_api_key": "x"}, "'hub_api_key': a secret has no place in a job file"),
        ({"max_num_seqs": 0}, "engine.max_num_seqs: 0: "),
        ({"distributed_executor_backend": "ray"}, "'distributed_executor_backend': vLLM's workers are processes of"),
        ({"distributed_executor_backend": ["mp"]}, "'distributed_executor_backend': vLLM's workers are"),
        ({"distributed_executor_backend": "uni", "tensor_parallel_size": 2}, "('mp'): leave it out"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused(make_spec, options, said):
    with pytest.raises(SpecError) as caught:
        make_spec(engine=options)
    assert said in str(caught.value)
