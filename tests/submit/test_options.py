"""A job file and `--set` flags become a job, or one clear error."""

import json

import pytest
import yaml

from rayferry.job.errors import SpecError
from rayferry.job.spec import ReplicaRange, parse
from rayferry.submit.options import load_job

MINIMAL = "model: m\ninput: {uri: s3://bucket/in/}\noutput: {uri: s3://bucket/out/}\n"


@pytest.fixture
def job(tmp_path):
    """A job file with this content."""

    def write(content=MINIMAL, name="job.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path, sets=()):
    with pytest.raises(SpecError) as caught:
        load_job(path, sets)
    return str(caught.value)


def test_yaml_and_json_give_the_same_job(job):
    data = yaml.safe_load(MINIMAL)
    assert load_job(job()) == load_job(job(json.dumps(data), "job.json")) == parse(data, "")


@pytest.mark.parametrize(
    "content", ["\ufeff" + MINIMAL, MINIMAL.replace("\n", "\r\n"), "---\n" + MINIMAL, MINIMAL[:-1]]
)
def test_a_file_from_another_editor_is_the_same_job(job, content):
    assert load_job(job(content)) == load_job(job())


def test_a_json_file_from_another_editor_is_the_same_job(job):
    text = json.dumps(yaml.safe_load(MINIMAL))
    assert load_job(job("\ufeff" + text, "job.json")) == load_job(job())


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("", "job.yaml", "this one is empty; try: rayferry init"),
        ("# only a remark\n", "job.yaml", "this one is empty"),
        ("- a\n", "job.yaml", "this one is a list"),
        ("hello", "job.yaml", "this one is a str"),
        ("a: [1", "job.yaml", "not valid YAML"),
        ("a:\n\t- b", "job.yaml", "not valid YAML"),
        ("a: b: c", "job.yaml", "not valid YAML"),
        ("a: 2026-13-45", "job.yaml", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "job.yaml", "not valid YAML"),
        ("--- a\n--- b\n", "job.yaml", "not valid YAML"),
        ("{'a': 1}", "job.json", "not valid JSON"),
        ("", "job.json", "not valid JSON"),
        (b"\x00\x01", "job.yaml", "not valid YAML"),
        (b"\xff\xfea\x00", "job.yaml", "cannot be read: it is not UTF-8 text"),
        ("[" * 1000, "job.yaml", "not valid YAML"),
        ("[" * 200000, "job.json", "not valid JSON"),
        ("1: x", "job.yaml", "1"),
        ("? [a, b]\n: c", "job.yaml", "job.yaml"),
        ("a: &a {b: *a}", "job.yaml", "a: unknown key"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_its_name_and_why(job, content, name, said):
    message = refused(job(content, name))
    assert (name in message, said in message) == (True, True), message


def test_a_file_that_is_not_there_names_rayferry_init(tmp_path):
    assert refused(tmp_path / "none.yaml").endswith(
        "none.yaml: cannot be read: No such file or directory; to make a job file: rayferry init"
    )


def test_a_folder_is_no_job_file(tmp_path):
    assert "cannot be read: Is a directory" in refused(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("modl: x", "modl: unknown key; did you mean 'model'?"),
        ("sampling: {max_token: 5}", "sampling.max_token: unknown key; did you mean 'max_tokens'?"),
        ("temperature: 0.1", "temperature: unknown key; did you mean 'sampling.temperature'?"),
        ("engine: {tensor_paralel_size: 2}", "did you mean 'tensor_parallel_size'?"),
        ("engine: {model: x}", "'model' is set at the top level of the job file"),
        ("replicas: 0", "replicas: 0: from 1 to 10,000 replicas"),
        ("replicas: {min: 3, max: 2}", "min (3) is above max (2)"),
        ("replicas: '2'", "replicas: '2'"),
        ("timeout: 6 hours", "timeout: '6 hours': not a duration"),
        ("timeout: 1:30", "timeout: 90"),
        ("batch_size: 0", "batch_size: 0"),
        ("sampling: {temperature: -1}", "sampling.temperature: -1"),
        ("sampling: {temperature: .nan}", "sampling.temperature: nan"),
        ("sampling:", "sampling: None"),
        ("task: dance", "task: 'dance'"),
        ("name: has space", "name: 'has space'"),
        ("cluster: {address: 'head:8265'}", "cluster.address: 'head:8265': the Jobs API is reached by http://"),
        ("runtime_env: {env_vars: {A: 1}}", "runtime_env.env_vars.A: 1"),
        # Ray 2.60 refuses an image beside the working_dir that a job always has
        ("runtime_env: {image_uri: 'repo/image:1'}", "runtime_env.image_uri: 'repo/image:1'"),
        ("schema_version: 2", "schema_version: 2"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(job, line, said):
    assert said in refused(job(MINIMAL + line + "\n"))


def test_every_fault_of_a_file_is_told_at_once(job):
    message = refused(job("modl: x\ninput: {uri: s3://bucket/in}\nbatch_size: 0\n"))
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize(
    "uri",
    ["bucket/prompts", "s3:/bucket/x", "s3://", "s3://B/x", "gs://bucket/x", "s3://[x", "C:\\x"],
)
@pytest.mark.parametrize("where", ["input", "output"])
def test_what_is_no_uri_is_refused(job, uri, where):
    assert f"{where}.uri: {uri!r}: " in refused(job(), [f"{where}.uri='{uri}'"])


@pytest.mark.parametrize("path", ["name", "input.uri", "input.uri.0", "output.uri"])
def test_the_templates_of_a_schedules_job_are_refused_where_nothing_fills_them_in(job, path):
    data = yaml.safe_load(MINIMAL)
    text = "s3://bucket/{{ scheduled_time | date('%Y-%m-%d') }}/"
    match path:
        case "name":
            data["name"] = text
        case "input.uri.0":
            data["input"]["uri"] = [text]
        case _:
            data[path.partition(".")[0]]["uri"] = text
    told = refused(job(yaml.safe_dump(data)))
    assert f"{path}: " in told
    assert "only a schedule fills in its time; rayferry schedule add" in told


def test_an_output_uri_holds_no_settings(job):
    assert "output.uri: 's3://bucket/a?b=c': " in refused(job(), ["output.uri='s3://bucket/a?b=c'"])


@pytest.mark.parametrize(
    ("assignment", "value_of", "expected"),
    [
        ("sampling.max_tokens=64", lambda spec: spec.sampling.max_tokens, 64),
        ("sampling.temperature=0", lambda spec: spec.sampling.temperature, 0),
        ("sampling.stop=['a','b']", lambda spec: spec.sampling.stop, ["a", "b"]),
        ("name=x=y", None, None),
        ("name='123'", lambda spec: spec.name, "123"),
        ("timeout=6h", lambda spec: spec.timeout_s, 21600.0),
        ("timeout=", lambda spec: spec.timeout, None),
        ("timeout=null", lambda spec: spec.timeout, None),
        ("replicas={min: 1, max: 4}", lambda spec: spec.replicas, ReplicaRange(min=1, max=4)),
        ("engine.enforce_eager=true", lambda spec: spec.engine.to_kwargs()["enforce_eager"], True),
        ("engine.hf_overrides.a.b=1", lambda spec: spec.engine.to_kwargs()["hf_overrides"], {"a": {"b": 1}}),
        ("input.uri=s3://other/in/", lambda spec: spec.input.uri, "s3://other/in/"),
        (" name =x", lambda spec: spec.name, "x"),
        ("input={uri: /data}", lambda spec: spec.input.uri, "/data"),
    ],
)
def test_set_changes_one_value(job, assignment, value_of, expected):
    if value_of is None:
        assert "name: 'x=y'" in refused(job(), [assignment])
    else:
        assert value_of(load_job(job(), [assignment])) == expected


def test_set_makes_maps_that_the_file_left_out_or_empty(job):
    spec = load_job(job(MINIMAL + "sampling:\n"), ["sampling.max_tokens=1", "resources.device=cpu"])
    assert (spec.sampling.max_tokens, spec.resources.device) == (1, "cpu")


def test_the_last_set_wins(job):
    assert load_job(job(), ["name=a", "name=b"]).name == "b"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("name", "--set name: write it as path=value"),
        ("=x", "--set =x: write it as path=value"),
        ("sampling..stop=x", "write it as path=value"),
        (".name=x", "write it as path=value"),
        ("name=[1", "the value is not valid YAML"),
        ("name=2024-02-30", "--set name=2024-02-30: the value is not valid YAML"),
        ("name={a: b: c}", "the value is not valid YAML"),
        ("name.first=x", "name is 'reviews', which has no keys"),
        ("nmae=x", "nmae: unknown key; did you mean 'name'?"),
        ("sampling.max_tokens=many", "sampling.max_tokens: 'many'"),
        ("input.uri=", "input.uri: None"),
    ],
)
def test_a_wrong_set_is_refused(job, assignment, said):
    assert said in refused(job(MINIMAL + "name: reviews\n"), [assignment])


def test_an_error_after_a_set_says_that_there_was_one(job):
    assert "job.yaml with --set: " in refused(job(), ["name= "])


@pytest.mark.parametrize("content", ["", "- a"])
def test_set_does_not_hide_that_the_file_is_no_job(job, content):
    assert "a job file is a mapping" in refused(job(content), ["model=m"])


SECRET = "hf_" + "Ab1" * 10


@pytest.mark.parametrize(
    "line",
    [
        "x: " + SECRET + ": y",
        "{API_KEY: hunter22: x",
        "runtime_env: {env_vars: {HF_TOKEN: '" + SECRET + "}}",
        "\t- " + SECRET,
        "runtime_env: {env_vars: {DB_PASSWORD: hunter22}}",
        "runtime_env: {env_vars: [DB_PASSWORD=hunter22]}",
    ],
)
def test_a_secret_in_a_file_that_is_refused_is_not_told(job, line):
    message = refused(job(MINIMAL + line + "\n"))
    assert (SECRET in message, "hunter22" in message) == (False, False)


@pytest.mark.parametrize(
    "assignment",
    [
        "runtime_env.env_vars.HF_TOKEN=" + SECRET,
        "runtime_env.env_vars.DB_PASSWORD=hunter22",
        "runtime_env.env_vars.DB_PASSWORD={hunter22",
        "runtime_env.secrets.A=hunter22",
        "engine.hf_token=hunter22",
        "name=" + SECRET,
        "name=[" + SECRET,
        SECRET,
        "model.a=" + SECRET,
    ],
)
def test_a_secret_in_a_set_that_is_refused_is_not_told(job, assignment):
    message = refused(job(), [assignment])
    assert (SECRET in message, "hunter22" in message) == (False, False)


def test_a_file_of_ones_own_is_found_beside_the_job_file(job, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "mine").mkdir()
    (tmp_path / "plugin.py").touch()
    env = load_job(job(MINIMAL + "runtime_env: {files: [mine], py_modules: [./plugin.py]}\n")).runtime_env
    assert (env.files, env.py_modules) == ([f"{tmp_path}/mine"], [f"{tmp_path}/plugin.py"])


def test_a_file_of_ones_own_may_be_anywhere(job, tmp_path):
    (tmp_path / "mine").mkdir()
    assert load_job(job(), [f"runtime_env.files=['{tmp_path}/mine']"]).runtime_env.files == [f"{tmp_path}/mine"]


def test_a_file_of_ones_own_that_is_not_there_is_refused(job, tmp_path):
    message = refused(job(MINIMAL + "runtime_env: {files: [none]}\n"))
    assert message.startswith(f"runtime_env.files.0: '{tmp_path}/none': cannot be read: No such file")


@pytest.mark.parametrize(
    ("value", "said"),
    [("[5]", "runtime_env.files.0: 5: must be text"), ("x", "must be a list"), ("['']", "runtime_env.files.0: ''")],
)
def test_a_list_of_files_that_is_none_is_refused(job, value, said):
    assert said in refused(job(MINIMAL + f"runtime_env: {{files: {value}}}\n"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.yaml", "model: m\ninput: {uri: /in}\noutput: {uri: /out}\nengine: {additional_config: &r {self: *r}}\n"),
        (
            "job.json",
            '{"model": "m", "input": {"uri": "/in"}, "output": {"uri": "/o"}, "sampling": {"stop": "\\ud800"}}',
        ),
    ],
)
def test_what_no_json_can_say_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match="holds what cannot be sent"):
        load_job(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (MINIMAL + "model: other\n", "job.yaml", "the key 'model' is there twice, in line 4, column 1"),
        (MINIMAL + '"model": other\n', "job.yaml", "the key 'model' is there twice, in line 4, column 1"),
        (
            MINIMAL + "engine:\n  dtype: half\n  dtype: float\n",
            "job.yaml",
            "'dtype' is there twice, in line 6, column 3",
        ),
        (MINIMAL + "sampling: {n: 1, n: 2}\n", "job.yaml", "the key 'n' is there twice, in line 4, column 18"),
        ('{"model": "m", "engine": {"a": 1, "a": 2}}', "job.json", "not valid JSON: the key 'a' is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_place(job, content, name, said):
    path = job(content, name)
    message = refused(path)
    assert (message.startswith(f"{path}: "), said in message) == (True, True), message


def test_a_key_twice_in_a_set_is_refused(job):
    assert "the key 'n' is there twice" in refused(job(), ["sampling={n: 1, n: 2}"])


def test_a_key_that_a_merge_brings_may_be_set_again(job):
    merged = "engine: {dtype: half, compilation_config: {<<: &a {mode: 1, <<: {mode: 3}}, mode: 2}}\n"
    assert load_job(job(MINIMAL + merged)).engine.to_kwargs()["compilation_config"] == {"mode": 2}
