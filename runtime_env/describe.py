"""Ray's runtime_env of a job, as a value."""

import shlex
from collections.abc import Sequence
from typing import Any

from rayferry.job.spec import JobSpec
from rayferry.runtime_env.staging import SPEC_NAME

# Seconds between SIGTERM and SIGKILL when a job is stopped, so that it can say so and give its groups back.
# Source: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/sdk.html
_STOP_WAIT_S = 20
_SETUP_TIMEOUT_S = 1800


def describe(spec: JobSpec, package_name: str) -> dict[str, Any]:
    """The runtime_env that the job's driver and all its workers get.

    Args:
        spec: the job.
        package_name: file name of the staged zip, where the client puts its real place; or the URI that it has in S3.

    Returns:
        A value that Ray accepts and `json` can write. `env_vars` of the job file win over ours.
    """
    env: dict[str, Any] = {
        "working_dir": package_name,
        "env_vars": {
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
            "VLLM_NO_USAGE_STATS": "1",
            **spec.runtime_env.env_vars,
        },
        "config": {"setup_timeout_seconds": _SETUP_TIMEOUT_S},
    }
    if spec.runtime_env.pip:
        env["pip"] = list(spec.runtime_env.pip)
    if spec.runtime_env.image_uri:
        env["image_uri"] = spec.runtime_env.image_uri
    return env


def entrypoint(submission_id: str | None, options: Sequence[str] = ()) -> str:
    """The shell line that Ray runs in the unpacked package; an id that is None the job asks Ray for."""
    chosen = [] if submission_id is None else ["--submission-id", submission_id]
    return shlex.join(["python", "-m", "rayferry.job", SPEC_NAME, *chosen, *options])


def probe_entrypoint(names: Sequence[str], options: Sequence[str] = ()) -> str:
    """The same for a look at some of what the job needs; see `rayferry.job.probe`."""
    return shlex.join(["python", "-m", "rayferry.job.probe", SPEC_NAME, *names, *options])
