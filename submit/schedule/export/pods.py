"""What the pods of a RayJob are: what a person says of them, and what Kubernetes is to know."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from rayferry.job.errors import SpecError
from rayferry.job.explain import explain
from rayferry.job.spec import JobSpec
from rayferry.job.typed import Text, Typed

# Ray's image for language models, as in `cluster.yaml`: this Ray, and the vLLM that it was released with.
DEFAULT_IMAGE = "rayproject/ray-llm:2.60.0-py312-cu130"
_CPUS_PER_GPU = 4
_GIB_PER_GPU = 16
_CPUS_WITHOUT_GPU = 8
_HEAD = {"cpu": "2", "memory": "8Gi"}
_QUANTITY = re.compile(r"\d+(\.\d+)?([EPTGMk]i?|m)?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_GPU = "nvidia.com/gpu"


class Pods(Typed):
    """The pods of an exported RayJob; each is set by `--pod NAME=VALUE`."""

    image: Text = Field(DEFAULT_IMAGE, description="with Ray, vLLM, boto3 and smart_open; of head and workers")
    namespace: Text | None = Field(None, description="of the manifest; else that of kubectl")
    service_account: Text | None = Field(None, description="of head and workers, for a role that may use the bucket")
    secret: Text | None = Field(None, description="the Secret that holds what the job names by env:NAME, by that name")
    env_from: Text | None = Field(None, description="a Secret all of whose keys become variables, such as AWS keys")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of the nodes for the workers")
    cpus: int | None = Field(None, ge=1, le=1000, description="of each worker; else 4 for each GPU, or 8 without")
    memory: Text | None = Field(None, description="of each worker, such as 64Gi; else 16Gi for each GPU")

    @field_validator("namespace", "service_account", "secret", "env_from")
    @classmethod
    def _label(cls, value: str | None) -> str | None:
        if value is not None and not all(map(_LABEL.fullmatch, value.split("."))):
            raise ValueError("no name for Kubernetes: use small letters, digits and '-'")
        return value

    @field_validator("memory")
    @classmethod
    def _quantity(cls, value: str | None) -> str | None:
        if value is not None and not _QUANTITY.fullmatch(value):
            raise ValueError("no quantity of Kubernetes'; write it so: 64Gi")
        return value


def read_pods(assignments: Sequence[str], image: str | None) -> Pods:
    """The pods that `--pod NAME=VALUE` and `--image` say; `node_selector.LABEL=VALUE` may be there several times.

    Raises:
        SpecError: naming what is wrong.
    """
    values: dict[str, Any] = {} if image is None else {"image": image}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            raise SpecError(f"--pod {assignment!r}: write it so: NAME=VALUE, such as memory=64Gi")
        head, _, label = name.partition(".")
        if head == "node_selector" and label:
            values.setdefault(head, {})[label] = text
        else:
            values[name] = yaml.safe_load(text) if text.isdigit() and name == "cpus" else text
    try:
        return Pods.model_validate(values)
    except ValidationError as error:
        raise SpecError("\n".join(f"--pod {line}" for line in explain(error.errors(), Pods))) from error


def ray_cluster(spec: JobSpec, pods: Pods, secret: str) -> dict[str, Any]:
    """The RayCluster that a job needs: a head that computes nothing, and a worker for each replica.

    Raises:
        SpecError: the workers are too small for the job.
    """
    gpus = 0 if spec.resources.device == "cpu" else spec.engine.world_size
    if not gpus and spec.engine.world_size > 1:
        raise SpecError(f"engine: a replica of {spec.engine.world_size} GPUs, and resources.device says cpu")
    cpus = pods.cpus or _CPUS_PER_GPU * gpus or _CPUS_WITHOUT_GPU
    if gpus > 1 and cpus <= gpus:
        raise SpecError(f"--pod cpus={cpus}: a replica has a busy process for each of its {gpus} GPUs: take more CPUs")
    resources = {"cpu": str(cpus), "memory": pods.memory or f"{_GIB_PER_GPU * max(1, gpus)}Gi"}
    if gpus:
        resources[_GPU] = str(gpus)
    worker = _pod("ray-worker", resources, spec, pods, secret)
    if pods.node_selector:
        worker["spec"]["nodeSelector"] = dict(pods.node_selector)
    if gpus:
        worker["spec"]["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
    cluster: dict[str, Any] = {
        # the head may read its RayCluster then, and Ray's tasks wait for nodes instead of being refused
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod("ray-head", _HEAD, spec, pods, secret),
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "replicas": spec.min_replicas,
                "minReplicas": spec.min_replicas,
                "maxReplicas": spec.max_replicas,
                "rayStartParams": {},
                "template": worker,
            }
        ],
    }
    version = re.search(r":(\d+\.\d+\.\d+)", pods.image)
    return {"rayVersion": version[1], **cluster} if version else cluster


def _pod(name: str, resources: Mapping[str, str], spec: JobSpec, pods: Pods, secret: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": pods.image,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    if variables := secret_variables(spec):
        container["env"] = [
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": variable}}}
            for variable in variables
        ]
    if pods.env_from:
        container["envFrom"] = [{"secretRef": {"name": pods.env_from}}]
    inner: dict[str, Any] = {"containers": [container]}
    if pods.service_account:
        inner["serviceAccountName"] = pods.service_account
    return {"spec": inner}


def secret_variables(spec: JobSpec) -> list[str]:
    """The variables of the nodes that hold the job's secrets."""
    references = spec.runtime_env.secrets.values()
    return sorted({one.removeprefix("env:") for one in references if one.startswith("env:")})
