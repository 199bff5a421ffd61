"""Questions that checks ask: each says what it saw, or what to do."""

import datetime as dt
import json
import uuid
from types import MappingProxyType

import pytest
from ray._private import ray_constants

from rayferry.job import identity, storage
from rayferry.job.earlier import Earlier
from rayferry.job.placement import Node
from rayferry.job.spec import parse
from rayferry.runtime_env.staging import stage
from rayferry.submit import probes as probes_module
from rayferry.submit import s3
from rayferry.submit.client import ClusterError
from rayferry.submit.config import Address
from rayferry.submit.probes import check_versions

HERE = Address("http://127.0.0.1:8265", "test")
FAR = Address("http://head:8265", "test")


@pytest.mark.parametrize("version", ["2.60.0", "2.49.0", "2.49.2", "2.999.0", "2.60.0rc0", "2.61.0.dev0"])
def test_a_ray_of_the_same_major_that_is_new_enough_passes(version):
    check_versions(version, "2.60.0")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("3.0.0", "install ray==3.0.0 here, or use a cluster of Ray 2"),
        ("3.0.0.dev0", "the cluster runs Ray 3.0.0.dev0"),
        ("1.13.0", "the cluster runs Ray 1.13.0"),
        ("2.48.9", "Rayferry needs 2.49 or newer"),
        ("2.9.3", "Rayferry needs 2.49 or newer"),
    ],
)
def test_a_ray_that_cannot_run_the_job_is_refused(version, said):
    with pytest.raises(Exception, match=said) as caught:
        check_versions(version, "2.60.0")
    assert caught.value.exit_code == 1


def test_the_cluster_tells_its_ray_and_its_session(probe):
    found = probe("cluster")
    assert (found.outcome, found.text) == ("ok", "Ray 2.60.0 at http://head:8265, session_1")


def test_a_cluster_that_tells_no_session_passes(probe, asked):
    cluster = asked()
    cluster.version = lambda: {"ray_version": "2.60.0"}
    assert probe("cluster", cluster=cluster).text == "Ray 2.60.0 at http://head:8265"


def test_the_cluster_tells_its_python_where_ray_tells_it(probe, asked):
    found = probe("cluster", cluster=asked(python_version="3.12.3"))
    assert (found.outcome, found.text) == ("ok", "Ray 2.60.0, Python 3.12.3 at http://head:8265, session_1")


def test_a_cluster_whose_python_is_too_old_for_the_job_is_refused(probe, asked):
    found = probe("cluster", cluster=asked(python_version="3.10.14"))
    said = "the cluster runs Python 3.10.14; Rayferry needs 3.11 or newer: take an image of Ray that has it"
    assert (found.outcome, found.text) == ("failed", said)


def test_a_cluster_of_another_ray_is_refused(probe, asked):
    assert probe("cluster", cluster=asked(version="3.0.0")).outcome == "failed"


def test_the_capacity_is_told_beside_what_the_job_needs(probe, asked):
    nodes = [Node(8), Node(4.5, 2, frozenset({"A10G"})), Node(8, 4, frozenset({"L4"}))]
    found = probe("capacity", cluster=asked(*nodes), replicas=2, engine={"tensor_parallel_size": 2})
    said = "3 nodes, 20.5 CPUs, 6 GPUs (at most 4 on one node, A10G, L4); the job needs 2 replicas x 2 GPUs"
    assert (found.outcome, found.text) == ("ok", said)


def test_the_capacity_counts_what_the_autoscaler_may_start(spec, asked):
    most = [Node(4), Node(8, 1), Node(8, 1)]
    cluster = asked(Node(4), autoscaling=True)
    said = probes_module.ask_capacity(spec, lambda: cluster, most)
    assert "an autoscaler can add nodes, no more than 3 nodes, 20 CPUs, 2 GPUs (at most 1 on one node)" in said


def test_the_capacity_names_the_accelerator_that_is_asked_for(probe, asked):
    nodes = [Node(8, 1, frozenset({"L4"}))]
    found = probe("capacity", cluster=asked(*nodes), resources={"accelerator_type": "L4"})
    assert found.text.endswith("; the job needs 1 replica x 1 GPU (L4)")


def test_a_cluster_without_gpus_says_that_cpus_are_used(probe):
    assert "no GPU on this cluster" in probe("capacity").text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"engine": {"tensor_parallel_size": 4}},
            "tensor_parallel_size=4 needs 4 GPUs on one node, and no node has more than 2; lower it",
        ),
        (
            {"engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}},
            "tensor_parallel_size=2 x pipeline_parallel_size=3 needs 6 GPUs on one node, and no node has more than 2",
        ),
        ({"replicas": 5}, "replicas=5 of 1 GPUs each do not fit: the cluster has room for 4"),
        (
            {"resources": {"accelerator_type": "H100"}},
            "resources.accelerator_type: no node has H100 GPUs; choose one that the cluster has: L4",
        ),
    ],
)
def test_a_job_that_does_not_fit_the_cluster_is_refused_with_numbers(probe, asked, changes, said):
    found = probe("capacity", cluster=asked(*[Node(8, 2, frozenset({"L4"}))] * 2), **changes)
    assert (found.outcome, found.text[: len(said)]) == ("failed", said)


def test_a_job_that_does_not_fit_yet_passes_where_nodes_can_be_added(probe, asked):
    found = probe("capacity", engine={"tensor_parallel_size": 4}, cluster=asked(autoscaling=True))
    assert (found.outcome, "an autoscaler can add nodes, nobody knows which" in found.text) == ("unknown", True)


def test_a_job_that_fits_passes_whatever_can_be_added(probe, asked):
    assert probe("capacity", cluster=asked(Node(8, 4), autoscaling=True)).outcome == "ok"


def test_a_cluster_that_does_not_tell_its_nodes_fails(probe, asked):
    cluster = asked()

    def refuse():
        raise ClusterError("refused")

    cluster.nodes = refuse
    assert (probe("capacity", cluster=cluster).outcome, probe("capacity", cluster=cluster).text) == (
        "failed",
        "refused",
    )


def test_engine_arguments_that_are_written_most_are_not_asked_about(probe):
    found = probe("engine", engine={"tensor_parallel_size": 2, "max_model_len": 4096, "dtype": "float16"})
    assert found.outcome == "ok"


def test_other_engine_arguments_are_left_to_the_clusters_vllm(probe):
    found = probe("engine", engine={"max_model_len": 4096, "some_new_one": 1, "kda_backend": "x"})
    says = "engine.kda_backend, engine.some_new_one: arguments that the cluster's vLLM knows, or not; the replicas ask"
    assert (found.outcome, found.elsewhere, found.text.startswith(says)) == ("unknown", True, True)


def test_the_package_tells_its_size(probe, spec):
    found = probe("package")
    package = stage(spec)
    said = f"{len(package.files)} files, {len(package.content):,} bytes as they travel"
    assert (found.outcome, found.text) == ("ok", said)


def test_a_package_that_ray_would_not_take_is_refused_with_its_ten_largest_files(probe, monkeypatch):
    files = [{"name": f"f{size}", "num_bytes": size} for size in range(12)]
    monkeypatch.setattr(probes_module, "_MAX_PACKAGE_BYTES", 3)
    found = probe("package", package={"files": files, "num_bytes": 3})
    names = ", ".join(f"f{size} ({size} bytes)" for size in range(11, 1, -1))
    assert (found.outcome, found.text.endswith(f"The largest: {names}")) == ("failed", True)


def test_the_limit_of_a_package_is_that_of_rays_dashboard():
    assert probes_module._MAX_PACKAGE_BYTES == ray_constants.DASHBOARD_CLIENT_MAX_SIZE


@pytest.mark.parametrize("name", ["input", "output"])
@pytest.mark.parametrize(("address", "here"), [(FAR, True), (HERE, False)], ids=["elsewhere", "through a tunnel"])
def test_paths_of_another_machine_are_left_for_the_job_to_find(probe, asked, name, address, here):
    found = probe(name, address=address, cluster=asked(here=here))
    assert (found.outcome, ": a path on the cluster's nodes; the job " in found.text) == ("unknown", True)


@pytest.mark.parametrize("form", ["{}/prompts", "{}/prompts/", "{}/prompts/a.jsonl", "file://{}/prompts"])
def test_a_path_to_input_on_this_machine_is_counted(probe, tmp_path, form):
    found = probe("input", input={"uri": form.format(tmp_path)})
    assert (found.outcome, found.text.endswith(": 1 file, 18 bytes")) == ("ok", True)


@pytest.mark.parametrize("files", [[], ["empty/.hidden"], ["empty/_SUCCESS"]], ids=str)
def test_a_path_to_no_input_on_this_machine_is_refused(probe, tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    found = probe("input", input={"uri": f"{tmp_path}/empty"})
    assert (found.outcome, "no input there" in found.text) == ("failed", True)


def test_input_of_an_unknown_suffix_passes(probe, tmp_path):
    (tmp_path / "prompts" / "b.xyz").write_text("x")
    assert probe("input").outcome == "ok"


def test_several_paths_to_input_are_counted_together(probe, tmp_path):
    (tmp_path / "b.jsonl").write_text("x")
    found = probe("input", input={"uri": [f"{tmp_path}/prompts", f"{tmp_path}/b.jsonl", f"{tmp_path}/*.jsonl"]})
    assert found.text == f"{tmp_path}/prompts and 2 more: 2 files, 19 bytes"


@pytest.mark.parametrize("files", [[], ["out/_meta/spec.json"]], ids=str)
def test_a_path_to_an_empty_output_on_this_machine_passes(probe, tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    assert probe("output").outcome == "ok"


@pytest.mark.parametrize("name", ["data", "_meta/manifest.json", "a.txt"])
@pytest.mark.parametrize("form", ["{}/out", "file://{}/out/"])
def test_a_path_to_an_output_on_this_machine_that_holds_something_is_refused(probe, tmp_path, name, form):
    (tmp_path / "out" / name).mkdir(parents=True)
    found = probe("output", output={"uri": form.format(tmp_path)})
    assert (found.outcome, "is not empty" in found.text) == ("failed", True)


@pytest.fixture
def begun(probe, job_data):
    """What the check of the output says of a changed job, after the job as it was began a run there."""

    def run(uri, write, earlier, told=MappingProxyType({}), **changes):
        travelled = json.loads(json.dumps(parse(job_data | {"output": {"uri": uri}} | told, "job.yaml").to_json()))
        settings = identity.settings(parse(travelled, "spec.json"))
        state = {"schema_version": identity.SCHEMA_VERSION, "run": "r", "settings": settings, "files": []}
        write(uri.rstrip("/") + "/_meta/run.json", json.dumps(state).encode())
        found = probe("output", earlier=earlier, **({"output": {"uri": uri}} | changes))
        return found.outcome, found.text

    return run


CHANGE = {"sampling": {"max_tokens": 77}}


@pytest.mark.parametrize("earlier", [Earlier(resume=True), Earlier(retry_failed=True)], ids=["resume", "retry"])
def test_a_run_that_was_begun_with_another_job_file_is_refused_with_the_difference(begun, tmp_path, earlier):
    outcome, text = begun(str(tmp_path / "out"), storage.write_bytes, earlier, **CHANGE)
    assert (outcome, "was begun with another job file" in text, "sampling" in text) == ("failed", True, True)
    assert "-> 77" in text


def test_so_is_one_on_s3(begun, bucket_uri):
    outcome, text = begun(f"{bucket_uri}/out/", s3.write_bytes, Earlier(resume=True), **CHANGE)
    assert (outcome, "-> 77" in text) == ("failed", True)


@pytest.mark.parametrize(
    ("earlier", "changes"),
    [
        (Earlier(resume=True), {}),
        (Earlier(resume=True), {"replicas": 2}),
        (Earlier(overwrite=True), CHANGE),
    ],
    ids=["the same", "the same answers", "removed"],
)
def test_a_run_that_can_be_gone_on_with_or_is_to_be_removed_passes(begun, tmp_path, earlier, changes):
    assert begun(str(tmp_path / "out"), storage.write_bytes, earlier, **changes)[0] == "ok"


def test_values_that_change_as_they_travel_are_no_change(begun, tmp_path):
    engine = {"engine": {"foo": float("inf"), "some": {"day": dt.date(2026, 1, 2)}}}
    uri = str(tmp_path / "out")
    assert begun(uri, storage.write_bytes, Earlier(resume=True), told=engine, **engine)[0] == "ok"


def test_a_state_that_may_not_be_read_is_left_to_the_run(begun, bucket_uri, monkeypatch):
    def refused(uri):
        raise s3.StorageError(uri)

    monkeypatch.setattr(s3, "read_bytes", refused)
    assert begun(f"{bucket_uri}/out/", s3.write_bytes, Earlier(resume=True), **CHANGE)[0] == "ok"


STATES = [b"", b"{", b"[]", b"{}", b'{"schema_version": 1, "settings": {}}', b'{"schema_version": 2, "settings": []}']


@pytest.mark.parametrize("content", STATES, ids=str)
def test_a_state_that_is_none_is_left_to_the_run(probe, tmp_path, content):
    storage.write_bytes(str(tmp_path / "out/_meta/run.json"), content)
    assert probe("output", earlier=Earlier(resume=True)).outcome == "ok"


def test_the_check_makes_no_folder(probe, tmp_path):
    probe("output")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def at(bucket_uri, probe):
    """One probe of a job in the bucket, after these objects were written there."""

    def run(name, *objects, uri="in/", **changes):
        for key in objects:
            s3.write_bytes(f"{bucket_uri}/{key}", b"x" if not key.endswith((".empty", "/")) else b"")
        return probe(name, **({name: {"uri": f"{bucket_uri}/{uri}"}} | changes))

    return run


@pytest.mark.parametrize("uri", ["in", "in/", "in/a.jsonl"])
def test_input_that_is_there_is_counted(at, uri):
    found = at("input", "in/a.jsonl", uri=uri)
    assert (found.outcome, found.text.endswith(": 1 file, 1 bytes")) == ("ok", True)


@pytest.mark.parametrize(
    "objects",
    [
        [],
        ["in/a.empty"],
        ["in/_SUCCESS"],
        ["in/.hidden", "in/_temporary/a.jsonl"],
        ["in-old/a.jsonl", "input/a.jsonl"],
    ],
    ids=str,
)
@pytest.mark.parametrize("uri", ["in", "in/"])
def test_input_that_is_not_there_is_refused(at, bucket_uri, objects, uri):
    found = at("input", *objects, uri=uri)
    assert (found.outcome, "no input there" in found.text) == ("failed", True)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("in/*.jsonl", ": 1 file, 1 bytes"),
        ("in/**", ": 3 files, 3 bytes"),
        ("in/?.txt", ": 1 file, 1 bytes"),
        ("in/x/*", ": 1 file, 1 bytes"),
        ("in/odd[1].txt", ": 1 file, 1 bytes"),
        ("in/*.csv", "check input.uri"),
    ],
)
def test_a_glob_counts_what_it_matches(at, pattern, said):
    more = ["in/odd[1].txt"] if "[" in pattern else []
    found = at("input", "in/a.jsonl", "in/a.txt", "in/x/b.txt", "in/_SUCCESS", *more, uri=pattern)
    assert found.text.endswith(said)


@pytest.mark.parametrize(
    "before", [["in/.1", "in/.2", "in/_3"], ["in/1.empty", "in/2.empty", "in/3.empty"]], ids=["hidden", "empty"]
)
def test_input_that_comes_late_in_a_long_listing_is_left_for_the_job_to_find(at, monkeypatch, before):
    monkeypatch.setattr(probes_module, "_LISTED", 2)
    found = at("input", *before, "in/z.jsonl")
    assert (found.outcome, "hold no input; the job lists its input" in found.text) == ("unknown", True)


def test_input_of_more_files_than_are_listed_says_so(at, monkeypatch):
    monkeypatch.setattr(probes_module, "_LISTED", 2)
    assert "2 files or more" in at("input", "in/a.txt", "in/b.txt", "in/c.txt").text


@pytest.mark.parametrize("name", ["input", "output", "model"])
def test_a_bucket_that_does_not_exist_is_refused(stack, probe, name):
    bucket = f"none-{uuid.uuid4().hex}"
    uri = f"s3://{bucket}/x"
    found = probe(name, **{name: uri if name == "model" else {"uri": uri}})
    assert (found.outcome, f"there is no bucket '{bucket}'" in found.text) == ("failed", True)


@pytest.mark.parametrize("name", ["input", "output", "model"])
def test_without_credentials_here_nothing_is_said_of_the_job(bucket_uri, probe, other_account, name):
    other_account(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    found = probe(name, **{name: bucket_uri if name == "model" else {"uri": bucket_uri}})
    assert (found.outcome, found.text.startswith(f"{bucket_uri}")) == ("unknown", True)
    assert f"try again; the {'replicas load' if name == 'model' else 'job l'}" in found.text


@pytest.mark.parametrize("objects", [[], ["out-old/a", "output/a"], ["out/"]], ids=str)
@pytest.mark.parametrize("uri", ["out", "out/"])
def test_an_empty_output_passes(at, objects, uri):
    assert at("output", *objects, uri=uri).outcome == "ok"


@pytest.mark.parametrize("thing", ["out/data/0.parquet", "out/_meta/manifest.json", "out/a.empty"])
def test_an_output_that_holds_something_is_refused(at, thing):
    found = at("output", thing, uri="out/")
    assert (found.outcome, f"{thing} is there" in found.text) == ("failed", True)


def test_the_check_leaves_nothing_in_the_output(at, bucket_uri):
    at("output", uri="out/")
    assert s3.list_keys(f"{bucket_uri}/out/", 10) == []


def test_a_model_on_s3_that_is_there_passes(at, bucket_uri):
    assert at("model", "m/config.json", model=f"{bucket_uri}/m").outcome == "ok"


@pytest.mark.parametrize("objects", [[], ["m-old/config.json"]], ids=str)
def test_a_model_on_s3_that_is_not_there_is_refused(at, bucket_uri, objects):
    assert at("model", *objects, model=f"{bucket_uri}/m").outcome == "failed"


@pytest.mark.parametrize(
    ("files", "outcome"), [(["m/config.json"], "ok"), (["m/model.gguf"], "failed"), ([], "failed")], ids=str
)
@pytest.mark.parametrize("form", ["{}/m", "file://{}/m"])
def test_a_models_folder_is_looked_at_where_the_head_is_this_machine(probe, tmp_path, files, outcome, form):
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    assert probe("model", model=form.format(tmp_path)).outcome == outcome


@pytest.mark.parametrize(("address", "here"), [(FAR, True), (HERE, False)], ids=["elsewhere", "through a tunnel"])
def test_a_models_folder_on_another_machine_is_not_looked_at(probe, asked, address, here):
    assert probe("model", model="/only/on/the/cluster", address=address, cluster=asked(here=here)).outcome == "unknown"


@pytest.mark.parametrize("model", ["./m", "../m", "~/m"])
@pytest.mark.parametrize("address", [HERE, FAR])
def test_a_model_by_a_path_that_means_nothing_on_the_cluster_is_refused(probe, tmp_path, monkeypatch, model, address):
    folder = tmp_path / "home" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "home" / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / ("here" if model == "../m" else ""))
    assert probe("model", model=model, address=address).outcome == "failed"


def test_a_hub_id_is_left_to_the_replicas(probe):
    found = probe("model", model="org/model")
    said = "org/model: a hub id; the replicas load it when they start, and the job ends if they cannot"
    assert (found.outcome, found.text) == ("unknown", said)
