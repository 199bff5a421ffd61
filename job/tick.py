"""A run that KubeRay's cron started: which tick of which schedule it is for, and what the job file says at that time.

Nothing at a laptop fills in the templates of such a job. The operator writes the tick's time onto the RayJob, and
copies it to the RayCluster that the job runs in, which the head may read, as its autoscaler does.
"""

import argparse
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from rayferry.job import templates
from rayferry.job.errors import JobError, SpecError

# Source: `constructRayJob` in raycronjob_controller.go and `constructRayClusterForRayJob` in rayjob_controller.go of
# https://github.com/ray-project/kuberay
ANNOTATION = "ray.io/cronjob-scheduled-timestamp"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 10
_NUM_TRIES = 5
_PAUSE_S = 2.0


@dataclass(frozen=True)
class Tick:
    """What fills the templates of a job file.

    Attributes:
        schedule: its name.
        timezone: IANA's name of the zone that the schedule is meant in.
        scheduled_time: None: KubeRay knows it.
    """

    schedule: str
    timezone: str
    scheduled_time: datetime | None = None

    @property
    def words(self) -> list[str]:
        """As the entrypoint takes it; `read` is the way back."""
        given = [] if self.scheduled_time is None else ["--scheduled-time", self.scheduled_time.isoformat()]
        return ["--schedule", self.schedule, "--timezone", self.timezone, *given]

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Gives the entrypoint's parser these words."""
        parser.add_argument("--schedule")
        parser.add_argument("--timezone", default="UTC")
        parser.add_argument("--scheduled-time", type=datetime.fromisoformat)

    @classmethod
    def read(cls, options: argparse.Namespace) -> "Tick | None":
        """What such a parser found; None if the job is of no schedule."""
        if options.schedule is None:
            return None
        return cls(options.schedule, options.timezone, options.scheduled_time)

    def fill(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The job file's values with the templates filled in.

        Raises:
            JobError: nobody tells the time, or this machine does not know the zone.
            SpecError: a template fails.
        """
        moment = self.scheduled_time or _time_of_kuberay()
        moment = moment.replace(tzinfo=moment.tzinfo or UTC)
        filled: dict[str, Any] = templates.fill(job, self.schedule, moment.astimezone(self._zone()))
        return filled

    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
            msg = f"--timezone {self.timezone!r}: the image knows no such zone; put tzdata into runtime_env.pip"
            raise SpecError(msg) from error


def own_submission_id() -> str | None:
    """The id that Ray gave the job that this process is the driver of.

    Source: `_get_driver_env_vars` in ray/dashboard/modules/job/job_supervisor.py (Ray 2.60).
    """
    try:
        found = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)


def _time_of_kuberay() -> datetime:
    """When the tick was due that made this RayCluster.

    Raises:
        JobError: the process is in none, may not read it, or the operator did not write it there.
    """
    cluster = os.environ.get("RAY_CLUSTER_NAME")
    if not cluster or "KUBERNETES_SERVICE_HOST" not in os.environ:
        msg = "the scheduled time is not known, as the job runs in no RayCluster of KubeRay; give --scheduled-time"
        raise JobError(msg)
    said = (_ray_cluster(cluster)["metadata"].get("annotations") or {}).get(ANNOTATION)
    if said is None:
        msg = (
            f"RayCluster {cluster} has no annotation {ANNOTATION}: it was not made by a RayCronJob of KubeRay 1.6 or "
            "later; for a RayJob made by hand, add the annotation to it, such as 2027-01-31T02:00:00Z"
        )
        raise JobError(msg)
    try:
        return datetime.fromisoformat(said)
    except ValueError as error:
        raise JobError(f"RayCluster {cluster}: annotation {ANNOTATION} is no time: {said!r}") from error


def _ray_cluster(name: str) -> dict[str, Any]:
    """A RayCluster of this pod's namespace, as the API server has it.

    Raises:
        JobError: it does not answer, or refuses.
    """
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    host = f"[{host}]" if ":" in host else host
    for number in range(1, _NUM_TRIES + 1):
        try:
            namespace = (_ACCOUNT / "namespace").read_text().strip()
            url = f"https://{host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{name}"
            headers = {"Authorization": f"Bearer {(_ACCOUNT / 'token').read_text().strip()}"}
            trusted = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=trusted) as answer:  # noqa: S310  # https
                found: dict[str, Any] = json.load(answer)
            return found
        except urllib.error.HTTPError as error:
            reason = f"the API server answers {error.code}"
            is_final = error.code < 500 and error.code != 429  # noqa: PLR2004
            if error.code == 403:  # noqa: PLR2004
                reason += "; the head's service account may read it where enableInTreeAutoscaling is true"
        except (OSError, ValueError) as error:
            reason, is_final = str(error), not (_ACCOUNT / "token").exists()
        if is_final or number == _NUM_TRIES:
            break
        time.sleep(_PAUSE_S)
    raise JobError(f"RayCluster {name}, which tells the scheduled time, cannot be read: {reason}")
