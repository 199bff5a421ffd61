"""Secrets that lie where they must not: known by a setting's name, or by what a text looks like."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"
ADVICE = (
    "a secret has no place in a job file: say where the nodes find it, such as "
    "runtime_env.secrets: {HF_TOKEN: env:HF_TOKEN} (or file:, ssm:, secretsmanager:)"
)

_KEY_CHARS = r"[\w-]{20,}"
# kind, how one begins, how it goes on
_LOOKS = (
    ("a Hugging Face token", "hf_ api_org_", r"[A-Za-z0-9]{20,}"),
    ("an AWS access key", "AKIA ASIA", r"[A-Z0-9]{16}(?![A-Za-z0-9])"),
    (
        "an AWS secret key",
        "aws_secret_access_key AWS_SECRET_ACCESS_KEY SecretAccessKey secretAccessKey awsSecretAccessKey",
        r"[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    ),
    ("an API key", "sk-", r"(?:[A-Za-z0-9]+-){0,3}[A-Za-z0-9_]{20,}"),
    ("an API key", "nvapi-", _KEY_CHARS),
    ("an API key", "AIza", r"[\w-]{35}"),
    ("a GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"[A-Za-z0-9_]{20,}"),
    ("a GitLab token", "glpat-", _KEY_CHARS),
    ("a Slack token", "xoxa- xoxb- xoxe- xoxp- xoxr- xoxs-", r"[A-Za-z0-9-]{10,}"),
    ("a JSON Web Token", "eyJ", r"[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
)
# The beginning stands first and is looked behind afterwards: a search for fixed text is twenty times as fast.
_SHAPES = [
    (kind, re.compile(f"{re.escape(start)}(?<![A-Za-z0-9]{re.escape(start)}){rest}"))
    for kind, starts, rest in _LOOKS
    for start in starts.split()
]
_SHAPES.append(("a private key", re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*")))
# A password that is only a place for one is none: `${NAME}`, `{name}`, `<name>`, `%(name)s`, `***`.
_BLANK = r"(?!(?:\$\{?\w+\}?|\{[^}\s]{0,99}\}|<[^>\s]{0,99}>|%(?:\(\w+\))?s|\*+)@)"
_URL = re.compile(r"://[^\s/?#:@'\"]*:" + _BLANK + r"[^\s/?#@'\"]+@")
_USER = re.compile(r"(?<![\w/*])[\w.+-]+:[^\s@/'\"]+@(?=[\w\[])")  # the same without a scheme
_PIP_URL = re.compile(r"://(?!git@|(?:[^\s/@]*:)?\$\{\w+\}@)[^\s/@]+@")

_NAMES = re.compile(
    r"TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|PASSPHRASE|_PWD$|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL"
)
_NAMES_OF_PLACES = re.compile(r"_(?:FILE|PATH|DIR|NAME|ARN|URL|URI|ENDPOINT)$")
_ASSIGNMENT = re.compile(r"(\w+)([\"']?\s*[=:]\s*)(?!\s)([^,}\]]+)")
_SWITCHES = {"", "0", "1", "true", "false", "yes", "no", "on", "off", "none"}
_REFERENCE = re.compile(r"\$\{?\w+\}?")  # Ray puts the node's own value there
_COUNT = re.compile(r"\d{1,7}")
# Words for the model, where a name such as `password` means nothing and an address is only a text.
_FREE_TEXT = ("input.template", "chat.", "sampling.")
_MAX_DEPTH = 5


def kind_of(text: str, *, urls: bool = True) -> str | None:
    """What secret a text holds, such as `a GitHub token`, or None.

    Args:
        text: anything.
        urls: whether an address with a user and a password in it counts.
    """
    for kind, shape in _SHAPES:
        if shape.search(text):
            return kind
    return "an address with a password in it" if urls and _URL.search(text) else None


def is_secret_name(name: str) -> bool:
    """True if a setting of this name holds a secret: HF_TOKEN, but not MAX_TOKENS or TOKEN_PATH."""
    name = re.sub(r"[^A-Z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper())
    return _NAMES.search(name) is not None and _NAMES_OF_PLACES.search(name) is None


def find(data: object) -> list[str]:
    """One line, `path: what it is and what to do`, for each secret in a job file. A line never holds the value."""
    return [f"{mask(path)}: {kind}; {ADVICE}" for path, kind in _found(data)]


def mask(text: str) -> str:
    """The text with *** for everything that looks like a secret."""
    for _, shape in _SHAPES:
        text = shape.sub(MASK, text)
    return _USER.sub(f"{MASK}@", _URL.sub(f"://{MASK}@", text))


def shown(path: str, value: object) -> str:
    """A value for a message that names its path: `repr`, with *** for what may be a secret."""
    name = path.rpartition(".")[2]
    is_text = not isinstance(value, int | float | None)
    in_environment = path.startswith(("runtime_env.env_vars", "runtime_env.secrets"))
    if (in_environment and is_text) or (is_secret_name(name) and value is not None):
        return MASK
    return mask(repr(_redacted(value)))


def shown_assignment(assignment: str) -> str:
    """`path=value` for a message, with *** for what may be a secret."""
    path, sign, value = assignment.partition("=")
    is_secret = is_secret_name(path.rpartition(".")[2]) or path.strip().startswith("runtime_env.")
    return mask(path + sign + (MASK if is_secret and value else str(_redacted(value))))


def _found(data: object) -> Iterator[tuple[str, str]]:
    waiting: list[tuple[str, object]] = [("", data)]
    seen: set[int] = set()  # YAML can make a list that holds itself
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [(f"{path}.{key}" if path else str(key), one) for key, one in items]
            waiting += reversed(inner)
            for place, _ in inner:
                if isinstance(value, Mapping) and (kind := kind_of(place.removeprefix(path))):
                    yield place, f"this key looks like {kind}"
            continue
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        kind = kind_of(text, urls=not path.startswith(_FREE_TEXT))
        if kind is None and path.startswith("runtime_env.pip") and _PIP_URL.search(text):
            kind = "an address with a password in it"
        if kind is not None:
            yield path, f"looks like {kind}"
        elif _is_named_secret(path, value):
            yield path, "a secret by its name"


def _is_named_secret(path: str, value: object) -> bool:
    """Of the environment alone: elsewhere such a name is vLLM's, a model's or a template's."""
    if value is None or not path.startswith("runtime_env.env_vars."):
        return False
    name, text = path.removeprefix("runtime_env.env_vars."), str(value).strip()
    if name.isdecimal():  # a list, written in place of a mapping
        name, _, text = text.partition("=")
    if text.lower() in _SWITCHES or _REFERENCE.fullmatch(text) or not is_secret_name(name):
        return False
    if "TOKEN" in name.upper() and _COUNT.fullmatch(text):
        return False
    return not (name == "GOOGLE_APPLICATION_CREDENTIALS" and text.startswith("/"))


def _redacted(value: object, depth: int = 0) -> Any:
    if isinstance(value, Mapping | list) and depth > _MAX_DEPTH:
        return MASK
    if isinstance(value, Mapping):
        return {
            key: MASK if one is not None and is_secret_name(str(key)) else _redacted(one, depth + 1)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_redacted(one, depth + 1) for one in value]
    if isinstance(value, str):
        return _ASSIGNMENT.sub(
            lambda found: found[1] + found[2] + MASK if is_secret_name(found[1]) else found[0], value
        )
    return value
