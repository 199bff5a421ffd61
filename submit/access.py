"""What lies between the laptop and a cluster, token, TLS and proxy, and what is wrong with it in plain words."""

import os
import re
import socket
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy

from rayferry.submit.config import is_loopback, without_password

# requests reads these where nothing else is said; the log's stream, which is not of requests, is made to follow.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_DEFAULT_TOKEN = "~/.ray/auth_token"  # noqa: S105  # where it is, not what
_PROBE_S = 2.0
_PLAIN = re.compile(r"WRONG_VERSION_NUMBER|UNKNOWN_PROTOCOL|RECORD_LAYER_FAILURE|HTTP_REQUEST|PACKET_LENGTH_TOO_LONG")
_CUT = re.compile(r"abort|reset|BadStatusLine|400 Client Error")  # what http meets where TLS is spoken
_NOT_TRUSTED = re.compile(r"certificate verify failed: ([^\"]+?)(?:\. | \(_ssl|'|$)")


@dataclass(frozen=True)
class Token:
    """What Ray's client does about a token here.

    Attributes:
        is_on: a token is sent.
        source: where it comes from, never the token; "" if there is none.
        problem: why there is none though one was asked for, and what to do; or "".
    """

    is_on: bool
    source: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Trouble:
    """Why there was no answer.

    Attributes:
        text: what it is, and what to do.
        may_pass: trying again may help.
    """

    text: str
    may_pass: bool = False


def token(environ: Mapping[str, str]) -> Token:
    """The token as Ray's client looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, the default path.

    **Source:** `AuthenticationTokenLoader` (Ray 2.60), which does all of it only if RAY_AUTH_MODE is `token`.
    """
    is_on = environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if environ.get("RAY_AUTH_TOKEN"):
        return Token(is_on, "RAY_AUTH_TOKEN")
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    if path:
        problem = _problem_of(path, "RAY_AUTH_TOKEN_PATH")
        return Token(is_on, "" if problem else f"{path} (RAY_AUTH_TOKEN_PATH)", problem)
    path = os.path.expanduser(_DEFAULT_TOKEN)  # noqa: PTH111  # Path raises where there is no home
    problem = _problem_of(path, "Ray's default")
    if not problem:
        return Token(is_on, _DEFAULT_TOKEN)
    if is_on and Path(path).exists():
        return Token(is_on, "", problem)
    if not is_on:
        return Token(is_on)
    hint = f"set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write it to {_DEFAULT_TOKEN}"
    return Token(is_on, "", f"RAY_AUTH_MODE is token, but there is no token here; {hint}")


def _problem_of(path: str, source: str) -> str:
    """Why a file is none to take a token from, or ""."""
    named = f"the token's file {path} ({source})"
    stack = 'if it was the local stack\'s: rayferry local up, then eval "$(rayferry local env)"'
    try:
        token = Path(path).read_bytes().strip()
        if token and not (token.isascii() and token.decode().isprintable()):
            return f"{named} holds more than a token's text (a binary file?); write the cluster's token to it"
        if token:
            return ""
    except FileNotFoundError:
        tilde = "; write the whole path, as Ray does not read '~'" if path.startswith("~") else f"; {stack}"
        return f"{named} is not there{tilde}"
    except OSError as error:
        return f"{named} cannot be read ({error.strerror}); give a file that you may read"
    return f"{named} is empty; write the cluster's token to it"


def refused_token(environ: Mapping[str, str], *, is_missing: bool, headers: Collection[str] = ()) -> str:
    """What to do where a Ray dashboard did not let us in.

    Args:
        environ: the variables.
        is_missing: it says that no token came, not that it was a wrong one.
        headers: names of those that the user gave.
    """
    if not is_missing and (own := next((name for name in headers if name.lower() == "authorization"), None)):
        return (
            f"does not accept the token in the header {own} (--headers or RAY_JOB_HEADERS); get the cluster's own "
            "(on its head: ray get-auth-token), written as 'Bearer TOKEN', or leave the header out"
        )
    found = token(environ)
    if found.is_on and found.problem:
        return found.problem
    return _missing(found) if is_missing else _wrong(found)


def _missing(found: Token) -> str:
    if found.is_on:
        return (
            f"asks for a token, and the one from {found.source} did not arrive; "
            "check what lies between (a proxy may drop the Authorization header: give it as X-Ray-Authorization)"
        )
    if found.source:
        return f"asks for a token, and yours ({found.source}) is not sent; set RAY_AUTH_MODE=token"
    return "asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def _wrong(found: Token) -> str:
    if not found.is_on:
        return "does not accept the token in --headers, --cookies or RAY_JOB_HEADERS; get the cluster's own token"
    return (
        f"does not accept the token from {found.source or 'here'}; get the cluster's own "
        "(on its head: ray get-auth-token), and mind that RAY_AUTH_TOKEN wins over RAY_AUTH_TOKEN_PATH"
    )


def certificates(verify: bool | str, environ: Mapping[str, str]) -> tuple[bool | str, str]:  # noqa: FBT001
    """Which certificates are trusted: a file or folder, True for the usual ones, False for all; and who said so."""
    if verify is True:
        for name in CA_VARIABLES:
            if environ.get(name):
                return environ[name], name
    return verify, "" if verify is True else "--verify"


def usual_context() -> ssl.SSLContext:
    """Trusts what requests does, and what the system does."""
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


def proxy_of(url: str) -> str | None:
    """The proxy on the way to `url`, as the environment has it. There is none between this machine and itself."""
    if is_loopback(url):
        return None
    return select_proxy(url, get_environ_proxies(url))


def proxy_name(url: str) -> str:
    """The same for people: variable and address, without a password."""
    proxy = proxy_of(url) or ""
    names = [f"{scheme}_proxy" for scheme in (urlsplit(url).scheme, "all")]
    spelled = [spelling for name in names for spelling in (name, name.upper())]
    source = next((name for name in spelled if os.environ.get(name) == proxy), "the system's settings")
    return f"{without_password(proxy)} ({source})"


def trouble(url: str, error: BaseException, verify: bool | str = True) -> Trouble | None:  # noqa: FBT001, FBT002
    """What TLS or a proxy has to do with an error of requests; None if nothing.

    Args:
        url: where the cluster is.
        error: what was raised.
        verify: as it was handed to requests.
    """
    words = _words(error)
    return _proxy_trouble(url, words) or _tls_trouble(url, words, verify)


def redirected(url: str, endpoint: str, location: str) -> str:
    """What to do where a request is sent on to another place, such as https or a login."""
    target = without_password(urljoin(url + endpoint, location).partition("?")[0])
    path = endpoint.partition("?")[0]
    if target.endswith(path):
        return f"{url} sends on to another address; give that one: {target.removesuffix(path)}"
    hint = "if that is a login, let --headers or --cookies say who you are, or tunnel to the dashboard"
    return f"{url} sends on to {target}; {hint}"


def _proxy_trouble(url: str, words: str) -> Trouble | None:
    if proxy_of(url) is None:
        return None
    name, host = proxy_name(url), urlsplit(url).hostname
    past = f"or go past it: NO_PROXY={host}"
    if "407" in words and ("Proxy" in words or "407 Client Error" in words or "status code 407" in words):
        hint = f"put them into its address (http://USER:PASSWORD@HOST:PORT), {past}"
        return Trouble(f"the proxy {name} asks for a name and a password; {hint}")
    refusal = re.search(r"Tunnel connection failed: (\d{3}[ \w]*)", words)
    if refusal:
        return Trouble(f"the proxy {name} gives no way to {url} ({refusal[1].strip()}); ask who runs it, {past}")
    if "ProxyError" in words or "Unable to connect to proxy" in words or "SOCKS" in words:
        return Trouble(f"the proxy {name} on the way to {url} does not answer; check that variable, {past}", True)  # noqa: FBT003
    return None


def _tls_trouble(url: str, words: str, verify: bool | str) -> Trouble | None:  # noqa: FBT001
    parts = urlsplit(url)
    if parts.scheme == "http":
        if _CUT.search(words) and not proxy_of(url) and _speaks_tls(parts.hostname or "", parts.port or 80):
            return Trouble(f"{url} speaks https, not http; give the address as https://{parts.netloc}{parts.path}")
        return None
    if _PLAIN.search(words):
        return Trouble(f"{url} speaks http, not https; give the address as http://{parts.netloc}{parts.path}")
    if "CERTIFICATE_REQUIRED" in words:
        hint = "that is not supported: use a tunnel or a port-forward to the dashboard"
        return Trouble(f"{url} wants a certificate of yours; {hint}")
    found = _NOT_TRUSTED.search(words)
    return Trouble(f"{url}: its certificate {_certificate_trouble(found[1].strip(), verify)}") if found else None


def _certificate_trouble(reason: str, verify: bool | str) -> str:  # noqa: FBT001
    if "mismatch" in reason.lower() or "not valid for" in reason:
        return f"is for another host ({reason}); use the name that it was made for"
    if "expired" in reason or "not yet valid" in reason:
        return f"does not hold now ({reason}); check this machine's clock, or have it renewed"
    seen = f"with {verify}" if isinstance(verify, str) else "here"
    return (
        f"is not trusted {seen} ({reason}); give the authority that signed it: "
        "--verify /path/to/ca.pem (--verify false trusts whoever answers, and shows them your token)"
    )


def _speaks_tls(host: str, port: int) -> bool:
    """True if a TLS handshake works there, whoever it is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=_PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error)  # an answer in TLS, though a refusal
    except (OSError, ValueError):
        return False


def _words(error: BaseException) -> str:
    """All that an error and what led to it say. Ray raises a shorter one in place of that of requests."""
    said: list[str] = []
    at: BaseException | None = error
    while at is not None and len(said) < 10:  # noqa: PLR2004  # a chain may be a circle
        said.append(f"{type(at).__name__} {at}")
        at = at.__cause__ or at.__context__
    return " | ".join(said)
