"""RayJob and RayCronJob: KubeRay's own schemas take them, and they say what the job and the schedule say."""

import io
import json
import re
import zipfile
from datetime import UTC, datetime

import jsonschema
import pytest
import yaml

from rayferry.job.errors import SpecError
from rayferry.job.spec import parse
from rayferry.job.tick import Tick
from rayferry.runtime_env.staging import stage
from rayferry.submit.schedule.export import kuberay
from rayferry.submit.schedule.export.kuberay import kubernetes_name, pack_job, pack_schedule, ray_cron_job, ray_job
from rayferry.submit.schedule.export.pods import Pods, read_pods

from . import kuberay_schemas

NOW = datetime(2027, 1, 1, tzinfo=UTC)
PREFIX = "s3://bucket/packages/"
JOB = {
    "name": "reviews",
    "model": "org/model",
    "input": {"uri": "s3://bucket/in/"},
    "output": {"uri": "s3://bucket/out/reviews/"},
}
EVERYTHING = JOB | {
    "engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "replicas": {"min": 2, "max": 8},
    "timeout": "90m",
    "retry": {"max_attempts": 5},
    "resources": {"accelerator_type": "L4"},
    "cluster": {"address": "http://head:8265"},
    "runtime_env": {
        "pip": ["tzdata"],
        "env_vars": {"TEXT": "$HOME `x` \"q\" 'q' ü\nnext", "NUMBER": "1", "YES": "yes"},
        "secrets": {"HF_TOKEN": "env:TEAM_TOKEN", "OTHER": "file:/etc/other", "THIRD": "ssm:/third"},
    },
}
DEFAULT = Pods()
PODS = Pods(
    namespace="batch",
    service_account="runner",
    env_from="aws",
    cpus=12,
    memory="96Gi",
    node_selector={"cloud.google.com/gke-accelerator": "nvidia-l4"},
)


def manifest_of(made):
    (text,) = made.files.values()
    return yaml.safe_load(text)


def job_manifest(pods=DEFAULT, **changes):
    return manifest_of(ray_job(pack_job(parse(JOB | changes, "test"), PREFIX), pods))


def cron_manifest(schedule, pods=DEFAULT, **changes):
    made = schedule(**changes)
    return manifest_of(ray_cron_job(made, pack_schedule(made, PREFIX, NOW), pods))


@pytest.fixture(scope="module")
def accepted():
    """Checks a manifest by its kind's schema."""
    validators = {}

    def check(manifest):
        kind = manifest["kind"]
        if kind not in validators:
            validators[kind] = jsonschema.Draft202012Validator(kuberay_schemas.strict_schema(kind))
        validators[kind].validate(manifest)

    return check


@pytest.mark.parametrize("pods", [Pods(), PODS], ids=["no-pods", "pods"])
@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"resources": {"device": "cpu"}}], ids=["little", "all", "cpu"])
def test_kuberays_schema_takes_a_ray_job(accepted, pods, changes):
    accepted(job_manifest(pods, **changes))


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["little", "all"])
def test_kuberays_schema_takes_a_ray_cron_job(accepted, schedule, changes):
    job = changes | JOB | {"output": {"uri": "s3://bucket/out/{{ scheduled_time | date('%Y-%m-%dT%H%M') }}/"}}
    accepted(cron_manifest(schedule, PODS, job=job))


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ((), "concurrencyPolicy"),
        (("spec",), "concurrencyPolicy"),
        (("spec", "jobTemplate"), "backOffLimit"),
        (("spec", "jobTemplate", "rayClusterSpec", "headGroupSpec"), "replicas"),
        (("spec", "jobTemplate", "rayClusterSpec", "headGroupSpec", "template", "spec"), "serviceAccount_"),
    ],
)
def test_a_key_that_kubernetes_would_drop_is_found_by_these_tests(accepted, schedule, place, key):
    manifest = cron_manifest(schedule)
    here = manifest
    for part in place:
        here = here[part]
    here[key] = "x"
    with pytest.raises(jsonschema.ValidationError, match=key):
        accepted(manifest)


@pytest.mark.skipif(kuberay_schemas.CRDS is None, reason="KubeRay's CRDs are not here")
def test_the_schemas_beside_the_tests_are_those_of_the_crds():
    text = kuberay_schemas.as_text(kuberay_schemas.reduced(kuberay_schemas.CRDS))
    assert kuberay_schemas.FIXTURE.read_text() == text


def test_a_ray_job_runs_the_package_from_s3():
    spec = parse(EVERYTHING, "test")
    made = job_manifest(**EVERYTHING)["spec"]
    environment = yaml.safe_load(made["runtimeEnvYAML"])
    assert made["entrypoint"] == "python -m rayferry.job spec.json --resume"
    assert environment["working_dir"] == f"{PREFIX}{stage(spec).name}"
    assert environment["env_vars"].items() >= EVERYTHING["runtime_env"]["env_vars"].items()
    assert environment["pip"] == ["tzdata"]
    assert made["metadata"]["rayferry_output_uri"] == "s3://bucket/out/reviews/"


def test_values_of_the_environment_pass_no_shell():
    assert job_manifest()["spec"]["submissionMode"] == "HTTPMode"


def test_the_same_job_has_the_same_package():
    packed = [pack_job(parse(JOB, "test"), prefix) for prefix in (PREFIX, "s3://bucket/packages")]
    assert packed[0] == packed[1]


def test_limits_of_the_run_are_kuberays():
    made = job_manifest(**EVERYTHING)["spec"]
    assert (made["backoffLimit"], made["activeDeadlineSeconds"]) == (4, 90 * 60 + 1800)
    assert (made["shutdownAfterJobFinishes"], made["ttlSecondsAfterFinished"]) == (True, 60)
    assert "activeDeadlineSeconds" not in job_manifest()["spec"]


@pytest.mark.parametrize(
    ("changes", "numbers", "resources"),
    [
        ({}, (1, 1, 1), {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}),
        ({"replicas": 3}, (3, 3, 3), {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}),
        (EVERYTHING, (2, 2, 8), {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}),
        ({"resources": {"device": "cpu"}}, (1, 1, 1), {"cpu": "8", "memory": "16Gi"}),
    ],
)
def test_a_worker_holds_one_replica(changes, numbers, resources):
    (group,) = job_manifest(**changes)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == numbers
    assert container["resources"] == {"requests": resources, "limits": resources}
    assert ("tolerations" in group["template"]["spec"]) is ("nvidia.com/gpu" in resources)


def test_the_head_computes_nothing_and_may_read_its_cluster():
    cluster = job_manifest()["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster["enableInTreeAutoscaling"] is True


def test_pods_are_as_they_are_said_to_be():
    manifest = job_manifest(PODS)
    cluster = manifest["spec"]["rayClusterSpec"]
    head, worker = (one["template"]["spec"] for one in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]))
    assert manifest["metadata"]["namespace"] == "batch"
    assert head["serviceAccountName"] == worker["serviceAccountName"] == "runner"
    assert worker["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert "nodeSelector" not in head
    assert worker["containers"][0]["resources"]["limits"]["memory"] == "96Gi"
    assert all(one["containers"][0]["envFrom"] == [{"secretRef": {"name": "aws"}}] for one in (head, worker))


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("registry:5000/team/ray-llm:2.61.3-py312", "2.61.3"),
        ("team/own:latest", None),
        (None, "2.60.0"),
    ],
)
def test_the_version_of_ray_is_that_of_the_image_if_it_tells(image, version):
    cluster = job_manifest(read_pods([], image))["spec"]["rayClusterSpec"]
    assert cluster.get("rayVersion") == version


@pytest.mark.parametrize(("secret", "name"), [(None, "reviews-secrets"), ("team-tokens", "team-tokens")])
def test_secrets_are_references_on_every_pod_and_never_values(secret, name, monkeypatch):
    monkeypatch.setenv("TEAM_TOKEN", "the-value")
    manifest = job_manifest(Pods(secret=secret), **EVERYTHING)
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["env"] == [
            {"name": "TEAM_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "TEAM_TOKEN"}}}
        ]
    assert "the-value" not in json.dumps(manifest)


def test_a_ray_cron_job_is_the_schedule(schedule):
    made = cron_manifest(schedule, cron="30 2 * * MON-FRI", timezone="Asia/Shanghai", paused=True)["spec"]
    assert (made["schedule"], made["timeZone"], made["suspend"]) == ("30 2 * * 1-5", "Asia/Shanghai", False)
    words = ["--resume", *Tick("nightly", "Asia/Shanghai").words]
    assert made["jobTemplate"]["entrypoint"].split() == ["python", "-m", "rayferry.job", "spec.json", *words]
    assert "rayferry_output_uri" not in made["jobTemplate"]["metadata"]


def test_one_package_serves_every_tick_because_its_job_has_the_templates_in(schedule):
    made = schedule()
    first, later = (pack_schedule(made, PREFIX, now) for now in (NOW, datetime(2028, 6, 1, tzinfo=UTC)))
    assert first.uri == later.uri
    with zipfile.ZipFile(io.BytesIO(first.package.content)) as archive:
        travels = json.loads(archive.read("spec.json"))
    filled = Tick("nightly", "UTC", datetime(2027, 5, 6, 7, 8, tzinfo=UTC)).fill(travels)
    assert parse(filled, "test").output.uri == "s3://bucket/out/2027-05-06T0708/"
    assert parse(filled, "test").name == "reviews-20270506"


@pytest.mark.parametrize("cron", ["0 0 L * *", "0 0 LW * *", "0 0 * * 5L", "0 0 * * 1#2", "0 0 */2 * 5"])
def test_an_expression_that_kuberay_would_read_otherwise_is_refused(schedule, cron):
    with pytest.raises(SpecError, match="KubeRay's cron knows no L, LW and #"):
        cron_manifest(schedule, cron=cron)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"overlap": "forbid"}, "overlap forbid: KubeRay starts a tick whether or not the run before is over"),
        ({"catch_up": "all"}, "catch_up all: of ticks that passed while its operator was down, KubeRay starts one"),
        ({"jitter": "5m"}, "jitter 5m: KubeRay has none"),
        ({"on_failure": {"command": "true"}}, "on_failure: nobody calls it"),
        ({"paused": True}, "paused here, and fires there: the manifest says suspend: false"),
        ({}, "unless it is paused: rayferry schedule pause nightly"),
    ],
)
def test_what_kuberay_does_otherwise_is_told(schedule, changes, note):
    made = schedule(**changes)
    assert any(note in one for one in ray_cron_job(made, pack_schedule(made, PREFIX, NOW), Pods()).notes)


def test_what_is_left_to_do_for_a_job_is_told():
    notes = "\n".join(ray_job(pack_job(parse(EVERYTHING, "test"), PREFIX), Pods()).notes)
    for one in (
        "kubectl create secret generic reviews-secrets --from-file=TEAM_TOKEN=FILE",
        "secret OTHER: mount /etc/other into head and workers",
        "--pod service_account=NAME",
        "resources.accelerator_type is L4",
        "cluster.address (http://head:8265) is left out",
    ):
        assert one in notes


@pytest.mark.parametrize(
    ("changes", "prefix", "message"),
    [
        ({"output": {"uri": "/out"}}, PREFIX, "output.uri: '/out' is a path"),
        ({"input": {"uri": "file:///in"}}, PREFIX, "input.uri: 'file:///in' is a path"),
        ({}, "/packages", "--package-uri '/packages': give a prefix in S3"),
        ({}, "s3://anonymous@bucket/x", "give a prefix in S3 that the nodes can read"),
    ],
)
def test_what_pods_cannot_reach_is_refused(changes, prefix, message):
    with pytest.raises(SpecError) as error:
        pack_job(parse(JOB | changes, "test"), prefix)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("pods", "changes", "message"),
    [
        (Pods(cpus=4), EVERYTHING, "--pod cpus=4: a replica has a busy process for each of its 4 GPUs: take more CPUs"),
        (Pods(), EVERYTHING | {"resources": {"device": "cpu"}}, "a replica of 4 GPUs, and resources.device says cpu"),
    ],
)
def test_workers_that_cannot_hold_a_replica_are_refused(pods, changes, message):
    with pytest.raises(SpecError) as error:
        job_manifest(pods, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("memory", "write it so: NAME=VALUE"),
        ("memory=lots", "--pod memory: .*no quantity of Kubernetes'"),
        ("cpus=many", "--pod cpus: "),
        ("cpu=4", "--pod cpu: unknown key; did you mean 'cpus'"),
        ("namespace=Bad_Name", "--pod namespace: .*no name for Kubernetes"),
    ],
)
def test_a_mistake_in_pod_is_told_by_its_name(assignment, message):
    with pytest.raises(SpecError, match=message):
        read_pods([assignment], None)


def test_pod_takes_several_labels():
    pods = read_pods(["node_selector.a.b/c=1", "node_selector.d=e", "cpus=12"], None)
    assert (pods.node_selector, pods.cpus) == ({"a.b/c": "1", "d": "e"}, 12)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nightly", "nightly"),
        ("a-b-1", "a-b-1"),
        ("Nightly", r"nightly-[0-9a-f]{5}"),
        ("a.b_c", r"a-b-c-[0-9a-f]{5}"),
        ("1st", r"r-1st-[0-9a-f]{5}"),
        ("x" * 63, "x{30}-[0-9a-f]{5}"),
        ("9", r"r-9-[0-9a-f]{5}"),
        ("a" * 29 + "-.bb", "a{29}-[0-9a-f]{5}"),
    ],
)
def test_a_name_is_one_of_kubernetes_and_no_two_become_one(text, name):
    found = kubernetes_name(text, 36)
    assert re.fullmatch(name, found)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,34}[a-z0-9])?", found)
    assert kuberay.kubernetes_name(text, 36) == found
