"""Secrets by reference: a job file says where the cluster finds a value, and the value never leaves the cluster.

`env:NAME`                     a variable of the node's own environment
`file:/path`                   a file on the node
`ssm:/name`                    a parameter of AWS Systems Manager
`secretsmanager:name[#key]`    a secret of AWS Secrets Manager; with a key, one text of the JSON object that it holds
"""

import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayferry.job.errors import JobError

_MAX_BYTES = 64 << 10
_FORMS = "env:NAME, file:/path/on/nodes, ssm:/parameter/name or secretsmanager:name#key"
_VALID = re.compile(
    r"env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\0\n]+|ssm:[A-Za-z0-9_.:/-]+|secretsmanager:[A-Za-z0-9/_+=.@:!-]+(#[^#\s]+)?"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AWS_ACTIONS = {
    "ssm": "ssm:GetParameter (and kms:Decrypt, if its key is your own)",
    "secretsmanager": "secretsmanager:GetSecretValue (and kms:Decrypt, if its key is your own)",
}
_REFUSALS = ("AccessDenied", "UnrecognizedClient", "InvalidSignature", "ExpiredToken", "InvalidClientToken")


class _UnreadableError(Exception):
    """Why there is no value, and what to do; never holds a value."""


def check_references(references: Mapping[str, str]) -> None:
    """Refuses what is no reference, without telling it: it may be the secret itself.

    Raises:
        ValueError: naming the variable.
    """
    for name, reference in references.items():
        if not _NAME.fullmatch(name):
            raise ValueError("a name here is that of an environment variable: letters, digits and '_'")
        if not _VALID.fullmatch(reference):
            raise ValueError(f"{name}: not a reference to a secret; write {_FORMS}, never the value itself")


def settle(references: Mapping[str, str]) -> None:
    """Puts each secret into this process's own environment, which Ray neither stores nor shows.

    vLLM hands it on to the workers of its engine.

    Args:
        references: variable to reference, as the job file's `runtime_env.secrets`.

    Raises:
        JobError: one cannot be had: which variable, which reference, why, and what to do; never a value.
    """
    for name, reference in references.items():
        reason = ""
        try:
            os.environ[name] = _value(reference)
        except _UnreadableError as error:
            reason = str(error)
        except ValueError:
            reason = "what is there cannot be a variable's value; is it text?"
        if reason:  # raised out here, so that what was caught, and the value in its reach, does not travel along
            raise JobError(f"secret {name}: {reference}: {reason}")


def _value(reference: str) -> str:
    kind, _, place = reference.partition(":")
    value = _READERS[kind](place)
    if not value.strip():
        raise _UnreadableError("it is empty; put the value there")
    return value


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise _UnreadableError(
            f"{name} is not set on node {socket.gethostname()}; set it where Ray is started, on every node"
        )
    return value


def _from_file(place: str) -> str:
    try:
        with Path(place).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _UnreadableError(
            f"cannot be read on node {socket.gethostname()}: {error.strerror}; put the file on every node, "
            "readable by Ray's user"
        ) from None
    if len(content) > _MAX_BYTES:
        raise _UnreadableError("the file is too large for a secret; it must hold the value alone")
    return content.decode().rstrip("\r\n")


def _from_ssm(name: str) -> str:
    found = _ask_aws("ssm", name, lambda client: client.get_parameter(Name=name, WithDecryption=True))
    return str(found["Parameter"]["Value"])


def _from_secretsmanager(place: str) -> str:
    name, _, key = place.partition("#")
    found = _ask_aws("secretsmanager", name, lambda client: client.get_secret_value(SecretId=name))
    text = found.get("SecretString")
    if text is None:
        raise _UnreadableError("it holds bytes; store it as text")
    if not key:
        return str(text)
    try:
        held = json.loads(text)
    except ValueError:
        held = None
    if not isinstance(held, dict) or not isinstance(held.get(key), str):
        raise _UnreadableError(f"it holds no JSON object with a text under {key!r}; check the key")
    return str(held[key])


def _ask_aws(service: str, name: str, ask: Callable[[Any], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What AWS answers. Its region is that of an ARN, else of the environment, else of the machine."""
    try:
        import boto3  # noqa: PLC0415  # where no secret of AWS is used, the cluster needs none
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError, NoRegionError  # noqa: PLC0415
    except ImportError:
        raise _UnreadableError("boto3 is not installed on the nodes; use an image that holds it") from None
    config = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 6})
    try:
        client: Any = boto3.client(service, region_name=_region(name), config=config)  # type: ignore[call-overload]
        return ask(client)
    except NoRegionError:
        raise _UnreadableError("no AWS region is known; set AWS_REGION on the nodes") from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
    except BotoCoreError as error:
        code = type(error).__name__
    # AWS's own text is left out: it may quote what was sent
    if "NotFound" in code:
        raise _UnreadableError(f"AWS knows none of that name ({code}); check name and region")
    if code.startswith(_REFUSALS) or code == "NoCredentialsError":
        raise _UnreadableError(f"AWS refuses ({code}); let the nodes' role use {_AWS_ACTIONS[service]}")
    raise _UnreadableError(f"AWS did not give it ({code}); can the nodes reach {service}?")


def _region(name: str) -> str | None:
    if name.startswith("arn:"):
        return (name.split(":") + [""] * 4)[3] or None
    given = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if given:
        return given
    import boto3  # noqa: PLC0415
    from botocore.utils import InstanceMetadataRegionFetcher  # noqa: PLC0415

    configured = boto3.Session().region_name
    if configured:
        return str(configured)
    found = InstanceMetadataRegionFetcher(timeout=2, num_attempts=2).retrieve_region()
    return str(found) if found else None


_READERS: dict[str, Callable[[str], str]] = {
    "env": _from_environment,
    "file": _from_file,
    "ssm": _from_ssm,
    "secretsmanager": _from_secretsmanager,
}
