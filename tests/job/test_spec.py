import json

import pytest
from pydantic import ValidationError

from rayferry.job.errors import SpecError
from rayferry.job.spec import JobSpec, ReplicaRange, parse

MINIMAL = {"model": "m", "input": {"uri": "s3://bucket/in/"}, "output": {"uri": "s3://bucket/out/"}}


def message(data):
    with pytest.raises(SpecError) as raised:
        parse(data, "job.yaml")
    return str(raised.value)


def message_for(**changes):
    return message(MINIMAL | changes)


def test_a_job_file_needs_a_model_an_input_and_an_output(make_spec):
    assert isinstance(make_spec(), JobSpec)


@pytest.mark.parametrize("key", ["model", "input", "output"])
def test_a_key_that_is_needed_and_not_there_is_named(key):
    assert message({name: value for name, value in MINIMAL.items() if name != key}) == (
        f"job.yaml: {key}: required, but not there"
    )


@pytest.mark.parametrize(
    ("data", "kind"), [(None, "empty"), ([], "a list"), ("model: m", "a str"), (5, "a int"), (True, "a bool")]
)
def test_what_is_no_mapping_is_no_job_file(data, kind):
    assert (
        message(data) == f"job.yaml: a job file is a mapping of keys to values, this one is {kind}; try: rayferry init"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batchsize": 3}, "batchsize: unknown key; did you mean 'batch_size'?"),
        ({"inputs": {}}, "inputs: unknown key; did you mean 'input'?"),
        ({"sampling": {"temprature": 1}}, "sampling.temprature: unknown key; did you mean 'temperature'?"),
        ({"temperature": 1}, "temperature: unknown key; did you mean 'sampling.temperature'?"),
        ({"engine": {"max_model_length": 9}}, "unknown key 'max_model_length'; did you mean 'max_model_len'?"),
        ({"engine": {"tensor_paralel_size": 9}}, "unknown key 'tensor_paralel_size'; did you mean"),
        ({"engine": {"model": "x"}}, "'model' is set at the top level of the job file, not under engine"),
        ({"engine": {"revision": "x"}}, "'revision' is set at the top level of the job file, not under engine"),
        ({"zzzzzzzz": 1}, "zzzzzzzz: unknown key; known: schema_version, name, model,"),
        ({1: 2}, "1: 1: keys should be strings"),
        ({True: 2}, "keys should be strings"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_one(changes, line):
    assert line in message(MINIMAL | changes)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "a b"}, "name: 'a b': "),
        ({"name": ""}, "name: '': "),
        ({"name": "-a"}, "name: '-a': "),
        ({"name": "a" * 64}, "name: "),
        ({"model": ""}, "model: '': "),
        ({"model": "s3://b/x"}, "model: 's3://b/x': 'b' is not a bucket name"),
        ({"task": "draw"}, "task: 'draw': input should be 'generate', 'chat', 'embed', 'classify' or 'score'"),
        ({"batch_size": 0}, "batch_size: 0: input should be greater than or equal to 1"),
        ({"batch_size": 1.0}, "batch_size: 1.0: "),
        ({"batch_size": "32"}, "batch_size: '32': must be a whole number"),
        ({"batch_size": True}, "batch_size: True: "),
        ({"replicas": 0}, "replicas: 0: from 1 to 10,000 replicas"),
        ({"replicas": {"min": 3, "max": 2}}, "min (3) is above max (2)"),
        ({"replicas": {"min": 0, "max": 2}}, "min: 0: "),
        ({"timeout": "6 hours"}, "timeout: '6 hours': not a duration"),
        ({"timeout": 60}, "timeout: 60: a duration needs a unit: 60s, 60m, 60h or 60d"),
        ({"retry": {"engine_timeout": 60}}, "retry.engine_timeout: 60: a duration needs a unit"),
        ({"timeout": "-1h"}, "timeout: '-1h': not a duration"),
        ({"timeout": "0s"}, "timeout: '0s': "),
        ({"timeout": f"{10**12}d"}, "d': too long; at most 3650d"),
        ({"timeout": "1" * 400 + "s"}, "too long; at most 3650d"),
        ({"timeout": "1e400s"}, "timeout: '1e400s': not a duration"),
        ({"retry": {"engine_timeout": "3651d"}}, "retry.engine_timeout: '3651d': too long"),
        ({"model": " "}, "model: ' ': must not be blank"),
        ({"revision": "\t"}, "revision: '\\t': must not be blank"),
        ({"resources": {"accelerator_type": ""}}, "resources.accelerator_type: '': must not be blank"),
        ({"input": {"uri": "/in/", "column": " "}}, "input.column: ' ': must not be blank"),
        ({"input": {"uri": "/in/", "id_column": ""}}, "input.id_column: '': must not be blank"),
        ({"lora": {"adapters": {"a": " "}}}, "lora.adapters.a: ' ': must not be blank"),
        ({"lora": {"adapters": {" ": "a"}}}, "must not be blank"),
        ({"runtime_env": {"pip": [" "]}}, "runtime_env.pip.0: ' ': must not be blank"),
        ({"runtime_env": {"files": [""]}}, "runtime_env.files.0: '': must not be blank"),
        *(({"output": {"uri": uri}}, "the root folder of a machine") for uri in ["/", "/.", "/a/..", "file:///"]),
        ({"sampling": {"temperature": -1}}, "sampling.temperature: -1: "),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature: nan: "),
        ({"sampling": {"temperature": float("inf")}}, "sampling.temperature: inf: "),
        ({"sampling": {"top_p": 0}}, "sampling.top_p: 0: "),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens: 0: "),
        ({"sampling": {"stop": 5}}, "sampling.stop: 5: "),
        ({"sampling": None}, "sampling: None: "),
        ({"engine": {"tensor_parallel_size": 0}}, "engine.tensor_parallel_size: 0: "),
        ({"on_error": {"max_error_rate": 5}}, "on_error.max_error_rate: 5: "),
        ({"runtime_env": {"env_vars": {"A=B": "1"}}}, "runtime_env.env_vars: "),
        ({"runtime_env": {"env_vars": {"": "1"}}}, "runtime_env.env_vars: "),
        ({"runtime_env": {"env_vars": {"A": "\0"}}}, "runtime_env.env_vars: "),
        ({"retry": {"max_attempts": 21}}, "retry.max_attempts: 21: "),
        ({"schema_version": 2}, "schema_version: 2: "),
        ({"resources": {"device": "tpu"}}, "resources.device: 'tpu': "),
        ({"resources": {"engines_per_gpu": 0}}, "resources.engines_per_gpu"),
        ({"resources": {"engines_per_gpu": "many"}}, "resources.engines_per_gpu"),
        (
            {"cluster": {"address": "127.0.0.1:8265"}},
            "cluster.address: '127.0.0.1:8265': the Jobs API is reached by",
        ),
        ({"cluster": {"address": "ray://head:10001"}}, "cluster.address: 'ray://head:10001': the Jobs API"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, "runtime_env.env_vars.A: 1: must be text"),
        ({"input": "s3://bucket/in"}, "input: 's3://bucket/in': "),
        ({"output": {"uri": "s3://anonymous@bucket/out"}}, "an output cannot be written anonymously"),
    ],
)
def test_a_wrong_value_is_told_with_its_path(changes, line):
    assert line in message(MINIMAL | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "embed", "sampling": {"n": 1}}, "sampling: has no meaning for task embed"),
        (
            {"resources": {"engines_per_gpu": 2}, "engine": {"tensor_parallel_size": 4}},
            "resources.engines_per_gpu: 2 engines cannot share a GPU where each needs 4; leave it out",
        ),
        (
            {"resources": {"engines_per_gpu": 2}, "replicas": {"max": 4}},
            "resources.engines_per_gpu: engines can share a GPU where replicas is a number",
        ),
        ({"pooling": {"dimensions": 5}}, "pooling: has no meaning for task generate"),
        ({"chat": {"system_prompt": "x"}}, "chat: has no meaning for task generate"),
        ({"task": "chat", "chat": {"continue_final_message": True}}, "needs add_generation_prompt: false"),
        ({"input": {"messages_column": "m"}}, "input.messages_column: messages need task: chat"),
        ({"task": "chat", "input": {"token_ids_column": "t"}}, "input.token_ids_column: token ids pass by"),
        ({"task": "score"}, "input.document_column: required for task score"),
        ({"input": {"document_column": "d"}}, "input.document_column: has no meaning for task generate"),
        ({"task": "embed", "input": {"image_column": "i"}}, "input.image_column: has no meaning for task embed"),
        ({"input": {"adapter_column": "a"}}, "input.adapter_column: names adapters, but there are none"),
        ({"lora": {"adapters": {}}}, "lora.adapters"),
        ({"lora": {"adapters": {"a": "/a"}, "default": "b"}}, "default 'b' is none of the adapters: a"),
        ({"output": {"uri": "s3://bucket/in/out"}}, "lies under input.uri"),
        ({"model": "s3://bucket/m", "output": {"uri": "s3://bucket/m/out"}}, "lies under 's3://bucket/m'"),
        ({"lora": {"adapters": {"a": "s3://bucket/"}}}, "lies under 's3://bucket/'"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_each_other_are_refused(make_spec, changes, said):
    with pytest.raises(SpecError) as caught:
        make_spec(**changes)
    assert said in str(caught.value)


def test_every_line_names_the_file():
    lines = message({"model": "m", "batchsize": 1}).splitlines()
    assert (len(lines), all(line.startswith("job.yaml: ") for line in lines)) == (3, True)


@pytest.mark.parametrize(
    "changes", [{"replicas": {"min": 2}}, {"replicas": {"min": 3, "max": 1}}, {"replicas": True}, {"replicas": "2"}]
)
def test_a_message_holds_no_name_of_the_validators_own_parts(changes):
    assert "[" not in message_for(**changes)


def test_a_long_value_is_cut_in_the_message():
    assert len(message_for(batch_size="9" * 5000)) < 200


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(None, None), ("30s", 30), ("90m", 5400), ("1.5h", 5400), ("2d", 172_800), ("6 h", 21_600)]
)
def test_a_timeout_is_read_in_its_unit(make_spec, timeout, seconds):
    assert make_spec(timeout=timeout).timeout_s == seconds


def test_an_engine_hangs_after_ten_minutes_unless_the_job_file_says_otherwise(make_spec):
    times = [make_spec().retry.engine_timeout_s, make_spec(retry={"engine_timeout": "90s"}).retry.engine_timeout_s]
    assert times == [600, 90]


@pytest.mark.parametrize(("replicas", "least"), [(3, 3), ({"min": 2, "max": 8}, 2), ({"max": 8}, 1)])
def test_the_least_number_of_replicas_must_fit(make_spec, replicas, least):
    assert make_spec(replicas=replicas).min_replicas == least


def test_a_range_of_replicas_is_one_value(make_spec):
    assert make_spec(replicas={"min": 1, "max": 8}).replicas == ReplicaRange(min=1, max=8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replicas": {"min": 1, "max": 8}, "timeout": "6h", "revision": "main", "task": "chat"},
        {"sampling": {"temperature": 0.5, "stop": "\n", "logit_bias": {50256: -100.0}, "bad_words": ["é"]}},
        {"engine": {"max_model_len": 4096, "hf_overrides": {"rope": {"factor": 2.5}, "x": None}}},
        {"runtime_env": {"pip": ["a==1"], "env_vars": {"A": "b"}}, "cluster": {"address": "http://head:8265"}},
        {"resources": {"accelerator_type": "H100"}, "input": {"id_column": "key", "anonymous": True}},
    ],
    ids=lambda changes: ",".join(changes) or "minimal",
)
def test_a_job_is_the_same_after_the_wire(make_spec, changes):
    spec = make_spec(**changes)
    assert parse(json.loads(spec.model_dump_json()), "spec.json") == spec


def test_a_job_does_not_change(make_spec):
    spec = make_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"
