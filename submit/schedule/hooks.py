"""What is called when a firing failed: a webhook or a command, with the same JSON."""

import http.client
import json
import os
import subprocess
import urllib.error
import urllib.request
from typing import Any

from rayferry.job.errors import RayferryError
from rayferry.submit.schedule.definition import UNFIT_FOR_URL, OnFailure
from rayferry.submit.schedule.records import Firing

SCHEMA_VERSION = 1
TIMEOUT_S = 30.0
_MAX_CHARS = 300


class HookError(RayferryError):
    """The call did not come through."""


def payload(firing: Firing) -> dict[str, Any]:
    """What a webhook or a command gets."""
    return {
        "schema_version": SCHEMA_VERSION,
        "event": "firing_failed",
        "schedule": firing.schedule,
        "scheduled_time": firing.scheduled_time,
        "trigger": firing.trigger,
        "state": firing.state,
        "reason": firing.reason,
        "submission_id": firing.latest_submission_id if firing.submission_id else None,
        "attempts": firing.attempt,
        "address": firing.address,
        "output_uri": firing.output_uri,
        "ended_at": firing.ended_at,
        "result": firing.result,
    }


def call(hook: OnFailure, firing: Firing) -> None:
    """Calls it, once.

    Raises:
        HookError: it does not answer, refuses, or ends with another code than 0.
    """
    body = json.dumps(payload(firing), ensure_ascii=False).encode()
    if hook.webhook is not None:
        _post(_url(hook.webhook), body)
    else:
        _run(hook.command or "", body)


def _url(webhook: str) -> str:
    if not webhook.startswith("env:"):
        return webhook
    name = webhook.removeprefix("env:")
    found = os.environ.get(name, "")
    if not found.startswith(("http://", "https://")) or UNFIT_FOR_URL.search(found):
        msg = f"on_failure: {name} is not set here to an http(s) URL; set it where the scheduler runs"
        raise HookError(msg)
    return found


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "rayferry"}
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310  # http(s): `_url`, `OnFailure`
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        msg = f"the webhook answered {error.code}"
        raise HookError(msg) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        # of URLError the reason; the texts of others show the URL, which may be a secret
        reason = error.reason if isinstance(error, urllib.error.URLError) else type(error).__name__
        msg = f"the webhook does not answer: {reason}"
        raise HookError(msg) from error


def _run(command: str, body: bytes) -> None:
    try:
        done = subprocess.run(  # noqa: S602  # a shell line is what the user gave
            command, input=body, shell=True, capture_output=True, check=False, timeout=TIMEOUT_S
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:  # ValueError: a character 0 in it
        is_late = isinstance(error, subprocess.TimeoutExpired)
        msg = f"the command did not end within {TIMEOUT_S:g} s" if is_late else f"the command: {error}"
        raise HookError(msg) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-_MAX_CHARS:]
        msg = f"the command ended with {done.returncode}: {said}".rstrip(": ")
        raise HookError(msg)
