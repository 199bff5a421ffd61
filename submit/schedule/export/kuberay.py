"""A schedule as a RayCronJob, and a job as a RayJob, of KubeRay.

Source: https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html and
https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/raycronjob-quick-start.html
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rayferry.job import VERSION, templates
from rayferry.job.errors import SpecError
from rayferry.job.layout import Layout
from rayferry.job.spec import JobSpec
from rayferry.job.tick import Tick
from rayferry.runtime_env.describe import describe, entrypoint
from rayferry.runtime_env.staging import Package, stage
from rayferry.submit import s3
from rayferry.submit.request import METADATA_PREFIX
from rayferry.submit.schedule import times
from rayferry.submit.schedule.definition import Schedule, render
from rayferry.submit.schedule.export.document import Export, commented, to_yaml
from rayferry.submit.schedule.export.fields import parse, plain
from rayferry.submit.schedule.export.pods import Pods, ray_cluster, secret_variables

# KubeRay puts 6 characters to a RayJob's name for its cluster's, and 11 to a RayCronJob's for its job's.
_MAX_JOB_NAME = 47
_MAX_CRON_NAME = 36
_STARTING_S = 1800  # for nodes to come and images to be pulled, which the job's own time-out does not count
_KEPT_S = 60  # a cluster whose job is over; the log is with the output


@dataclass(frozen=True)
class Packed:
    """A job as it travels without a laptop.

    Attributes:
        spec: the job; of a schedule, that of its next tick.
        package: the zip, which is to be put to `uri`.
        uri: in S3.
        tick: what fills in the templates on the cluster, or None.
    """

    spec: JobSpec
    package: Package
    uri: str
    tick: Tick | None = None


def pack_job(spec: JobSpec, prefix: str) -> Packed:
    """A job that runs once.

    Raises:
        SpecError: `prefix` is none of S3's, or the job cannot run on nodes of its own.
    """
    _check_reachable(spec)
    package = stage(spec)
    return Packed(spec, package, _uri(prefix, package))


def pack_schedule(schedule: Schedule, prefix: str, now: datetime) -> Packed:
    """A schedule's job, templates and all: one package for every tick.

    Raises:
        SpecError: `prefix` is none of S3's, or the job cannot run on nodes of its own.
    """
    spec = render(schedule, next(times.fire_times(schedule.cron, schedule.zone, now)))
    _check_reachable(spec)
    package = stage(spec, templates.put_back(spec.to_json(), schedule.job))
    return Packed(spec, package, _uri(prefix, package), Tick(schedule.name, schedule.timezone))


def _uri(prefix: str, package: Package) -> str:
    if not s3.is_s3(prefix) or prefix.startswith("s3://anonymous@"):
        raise SpecError(f"--package-uri {prefix!r}: give a prefix in S3 that the nodes can read: s3://bucket/packages/")
    s3.split(prefix)
    return f"{prefix.rstrip('/')}/{package.name}"


def _check_reachable(spec: JobSpec) -> None:
    for name, uris in (("input.uri", spec.input.uris), ("output.uri", [spec.output.uri])):
        for uri in uris:
            if not s3.is_s3(uri):
                raise SpecError(f"{name}: {uri!r} is a path, and the pods of a RayJob begin empty; put it into S3")


def ray_job(packed: Packed, pods: Pods) -> Export:
    """A RayJob for `kubectl apply`.

    Raises:
        SpecError: the workers are too small for the job.
    """
    name = kubernetes_name(packed.spec.name, _MAX_JOB_NAME)
    secret = pods.secret or f"{name}-secrets"
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name, pods),
        "spec": _ray_job_spec(packed, pods, secret),
    }
    told = (f"{packed.spec.name}: a job of Rayferry {VERSION}; its answers: {packed.spec.output.uri}",)
    return Export({f"{name}.yaml": commented(told) + to_yaml(manifest)}, tuple(_notes(packed, pods, secret)))


def ray_cron_job(schedule: Schedule, packed: Packed, pods: Pods) -> Export:
    """A RayCronJob for `kubectl apply`.

    Raises:
        SpecError: KubeRay's cron cannot say the expression, or the workers are too small for the job.
    """
    fields = parse(schedule.cron)
    if not fields.is_plain:
        msg = (
            f"cron {schedule.cron!r}: KubeRay's cron knows no L, LW and #, and runs on either day where two are given; "
            "write it without, or run the schedule by `rayferry schedule run --on-cluster`"
        )
        raise SpecError(msg)
    name = kubernetes_name(schedule.name, _MAX_CRON_NAME)
    secret = pods.secret or f"{name}-secrets"
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": _metadata(name, pods),
        "spec": {
            "schedule": plain(fields),
            "timeZone": schedule.timezone,
            "suspend": False,  # a schedule is paused here so that KubeRay alone fires it
            "jobTemplate": _ray_job_spec(packed, pods, secret),
        },
    }
    told = (f"Rayferry schedule {schedule.name}: {schedule.cron} ({schedule.timezone})",)
    notes = (*_cron_notes(schedule), *_notes(packed, pods, secret))
    return Export({f"{name}.yaml": commented(told) + to_yaml(manifest)}, notes)


def _metadata(name: str, pods: Pods) -> dict[str, Any]:
    labels = {"app.kubernetes.io/created-by": "rayferry"}
    return {"name": name, **({"namespace": pods.namespace} if pods.namespace else {}), "labels": labels}


def _ray_job_spec(packed: Packed, pods: Pods, secret: str) -> dict[str, Any]:
    spec = packed.spec
    told = {METADATA_PREFIX + "version": VERSION, METADATA_PREFIX + "name": spec.name}
    if packed.tick is None:
        told[METADATA_PREFIX + "output_uri"] = Layout(spec.output.uri).output_uri
    else:
        told[METADATA_PREFIX + "name"] = packed.tick.schedule
    job: dict[str, Any] = {
        # The operator sends the job itself: no pod more that needs the image, and no shell that reads the values.
        "submissionMode": "HTTPMode",
        "entrypoint": entrypoint(None, ["--resume", *(packed.tick.words if packed.tick else [])]),
        "runtimeEnvYAML": to_yaml(describe(spec, packed.uri)),
        "metadata": told,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEPT_S,
        "backoffLimit": spec.retry.max_attempts - 1,
    }
    if spec.timeout_s is not None:
        job["activeDeadlineSeconds"] = math.ceil(spec.timeout_s) + _STARTING_S
    return {**job, "rayClusterSpec": ray_cluster(spec, pods, secret)}


def kubernetes_name(text: str, most: int) -> str:
    """A name that Kubernetes takes; one that had to be changed ends in a hash, so that no two become one."""
    name = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if name == text and len(name) <= most and name[0].isalpha():
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:5]
    return f"{('r-' + name if not name[:1].isalpha() else name)[: most - 6].rstrip('-')}-{digest}"


def _notes(packed: Packed, pods: Pods, secret: str) -> Iterator[str]:
    spec = packed.spec
    variables = secret_variables(spec)
    if variables:
        keys = " ".join(f"--from-file={name}=FILE" for name in variables)
        yield f"secrets come from the Secret {secret}: kubectl create secret generic {secret} {keys}"
    for name, reference in spec.runtime_env.secrets.items():
        if reference.startswith("file:"):
            yield f"secret {name}: mount {reference.removeprefix('file:')} into head and workers"
    if not (pods.service_account or pods.env_from):
        yield "the pods use S3 by their nodes' role; else: --pod service_account=NAME, or --pod env_from=SECRET"
    if spec.resources.accelerator_type and not pods.node_selector:
        yield (
            f"resources.accelerator_type is {spec.resources.accelerator_type}, and any node with a GPU may be taken: "
            "--pod node_selector.LABEL=VALUE"
        )
    if spec.cluster.address:
        yield f"cluster.address ({spec.cluster.address}) is left out: each run has a cluster of its own"


def _cron_notes(schedule: Schedule) -> Iterator[str]:
    yield (
        "needs KubeRay 1.6 or later with RayCronJob switched on; the schedule here fires as well, unless it is paused: "
        f"rayferry schedule pause {schedule.name}"
    )
    if schedule.paused:
        yield "the schedule is paused here, and fires there: the manifest says suspend: false"
    if schedule.overlap != "allow":
        yield f"overlap {schedule.overlap}: KubeRay starts a tick whether or not the run before is over"
    if schedule.catch_up != "latest":
        yield f"catch_up {schedule.catch_up}: of ticks that passed while its operator was down, KubeRay starts one"
    if schedule.jitter_s:
        yield f"jitter {schedule.jitter}: KubeRay has none"
    if schedule.on_failure:
        yield "on_failure: nobody calls it; KubeRay tells of failures by events"
    if schedule.track:
        yield f"track: the manifest has {schedule.job_path} as it was when the schedule was added; export it again"
