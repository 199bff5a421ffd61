"""How the Jobs API is spoken to: Ray's own SDK with time-outs, and what its errors mean.

The only module that imports ray.job_submission.
"""

import io
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests
import urllib3
from ray.job_submission import JobSubmissionClient
from requests.exceptions import ChunkedEncodingError, InvalidHeader, InvalidURL

from rayferry.job.errors import RayferryError
from rayferry.submit import access
from rayferry.submit.config import ADDRESS_VARIABLES, Address, is_loopback

for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they tell of every upload and every closed socket

_TIMEOUT_S = (5, 60)  # connect, read
_READ_TRIES = 3
_READ_PAUSE_S = 0.5
_HEARTBEAT_S = 20.0
# Source: `format_authentication_http_error` puts the first before a 401's and a 403's text, whoever sent it; the
# second are what Ray's own `token_auth_middleware` sends (Ray 2.60).
_REFUSED = ("Authentication required:", "Authentication failed:")
_TOKEN_WORDS = ("Missing authentication token", "Invalid authentication token")
T = TypeVar("T")


class ClusterError(RayferryError):
    """The cluster could not be asked, or refused."""


class UnreachableError(ClusterError):
    """The cluster did not answer. Trying again may help."""


class NotKnownError(ClusterError):
    """Contact was lost while a job was sent: it may run."""

    exit_code = 5


class NoSuchJobError(ClusterError):
    """The cluster does not know the id."""


class JobsSdk(JobSubmissionClient):  # type: ignore[misc]  # Ray's SDK has no types
    """Ray's client, with a time-out on every request (its own would wait for ever) and the log's stream made alike.

    Source: `SubmissionClient._do_request` hands further keywords to `requests.request` (Ray 2.60).
    """

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        options.setdefault("timeout", _TIMEOUT_S)
        if isinstance(options.get("data"), bytes):  # sent in one go, all of it would have to pass within one time-out
            options["data"] = io.BytesIO(options["data"])
        if is_loopback(self._address):  # requests would ask the proxy for this very machine
            options.setdefault("proxies", {"no_proxy": urlsplit(self._address).hostname})
        if any(name.lower() == "authorization" for name in self._headers):
            options.setdefault("auth", lambda request: request)  # or requests puts ~/.netrc's in its place
        # a POST would arrive as a GET, and the secrets at whoever is named there
        options.setdefault("allow_redirects", False)
        answer = super()._do_request(method, endpoint, **options)
        if answer.is_redirect:
            raise ClusterError(access.redirected(self._address, endpoint, answer.headers["Location"]))
        return answer

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """The log as it comes.

        Ray's own takes no proxy, trusts other certificates, does not notice a dead connection, and ends at a message
        of 4 MiB.

        Source: https://github.com/ray-project/ray/issues/51601
        """
        url = f"{self._address}/api/jobs/{job_id}/logs/tail"
        trusted = self._ssl_context
        if trusted is None:
            trusted = access.usual_context() if url.startswith("https:") else True
        strict = aiohttp.TraceConfig()
        strict.on_request_redirect.append(_refuse_redirect)  # it would take the secrets along
        async with (
            aiohttp.ClientSession(
                cookies=self._cookies,
                headers=self._headers,
                cookie_jar=aiohttp.CookieJar(quote_cookie=False),
                trace_configs=[strict],
            ) as session,
            session.ws_connect(
                url, ssl=trusted, proxy=access.proxy_of(url), heartbeat=_HEARTBEAT_S, max_msg_size=0
            ) as stream,
        ):
            async for message in stream:
                if message.type is aiohttp.WSMsgType.TEXT:
                    yield message.data


async def _refuse_redirect(*_: object) -> None:
    msg = "the log's stream was sent elsewhere"
    raise ClusterError(msg)


def own_url() -> str:
    """The dashboard's URL, of the cluster that this process is a driver of.

    Source: `get_address_for_submission_client` asks the cluster in the same way (Ray 2.49 and 2.60).

    Raises:
        UnreachableError: it is no driver, or its cluster does not tell.
    """
    from ray.dashboard.utils import ray_address_to_api_server_url  # noqa: PLC0415  # Ray itself, not only its client

    try:
        return str(ray_address_to_api_server_url(os.environ.get("RAY_ADDRESS", "auto")))
    except (ConnectionError, ValueError, RuntimeError) as error:
        msg = f"no cluster is found from here ({error}); this is for a job of one: leave --inside out"
        raise UnreachableError(msg) from error


class Transport:
    """Asks a cluster, and raises `ClusterError` in plain words, and nothing else.

    Attributes:
        url: the dashboard's.
        sdk: Ray's client; each use of it goes through `ask` or `read`.
    """

    def __init__(self, address: Address) -> None:
        """Connects.

        Args:
            address: of the dashboard, and how it is spoken to.

        Raises:
            UnreachableError: nothing answers there.
            ClusterError: something else than a Ray dashboard answers, or it refuses.
        """
        self.url = address.url
        self._address = address
        self._verify, said = access.certificates(address.verify, os.environ if address.url.startswith("https:") else {})
        if isinstance(self._verify, str) and not Path(self._verify).exists():
            msg = f"the certificates {self._verify} ({said}) are not there; give a file that is, or unset it"
            raise ClusterError(msg)
        if self._verify is False:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # it was asked for
        # Ray lets these override the address that it is given.
        hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
        try:
            self.sdk = self.read(
                lambda: JobsSdk(
                    address.url,
                    verify=self._verify,
                    headers=dict(address.headers),
                    cookies=dict(address.cookies) or None,
                ),
                "connect",
            )
        finally:
            os.environ.update(hidden)

    def get(
        self,
        path: str,
        part: Callable[[Any], Any] = lambda value: value,
        read: Callable[[requests.Response], Any] = requests.Response.json,
    ) -> Any:
        """A part of what the dashboard answers at `path`."""

        def call() -> Any:
            answer = self.sdk._do_request("GET", path)  # noqa: SLF001  # it carries the authentication
            answer.raise_for_status()
            return part(read(answer))

        return self.read(call, path)

    def read(self, call: Callable[[], T], what: str) -> T:
        """As `ask`, for what may be asked again: a connection that was made and broke is no answer yet."""
        for _ in range(_READ_TRIES - 1):
            try:
                return self.ask(call, what)
            except UnreachableError as error:
                if "Failed to establish a new connection" in str(error.__cause__):
                    raise
            time.sleep(_READ_PAUSE_S)
        return self.ask(call, what)

    def ask(self, call: Callable[[], T], what: str) -> T:
        """What `call` gives; `what` it is about, for people: `connect`, a path or a job's id.

        Raises:
            ClusterError: it gave none, and why.
        """
        try:
            return call()
        except ClusterError:
            raise
        except (InvalidHeader, UnicodeEncodeError):  # whose text has the value, and so maybe a secret
            msg = "a header, or the token, has a character that HTTP does not allow; look for line ends, and quotes"
            raise ClusterError(msg) from None
        except UnicodeDecodeError as error:
            token = access.token(os.environ)
            raise (
                ClusterError(token.problem) if token.is_on and token.problem else self._translate(error, what)
            ) from None
        except (requests.RequestException, ConnectionError) as error:
            raise self._no_answer(error, what) from error
        except Exception as error:
            raise self._translate(error, what) from error

    def _no_answer(self, error: Exception, what: str) -> ClusterError:
        """What it means that there was no answer, or none of a Ray dashboard's."""
        trouble = access.trouble(self.url, error, self._verify) if what == "connect" else None
        if trouble:
            return (UnreachableError if trouble.may_pass else ClusterError)(trouble.text)
        if isinstance(error, InvalidURL):  # whose text has the password
            return ClusterError("the proxy's address is not valid: escape special signs in it, such as %23 for #")
        if isinstance(error, requests.JSONDecodeError) and not error.doc:
            return UnreachableError(f"{self.url}: an answer was cut off ({what})")
        if isinstance(error, requests.HTTPError):
            status = error.response.status_code
            msg = f"{self.url} answered {what} with HTTP {status}; check the address, and the dashboard's log"
            return (UnreachableError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ClusterError)(msg)
        if isinstance(error, requests.ConnectionError | requests.Timeout | ChunkedEncodingError | ConnectionError):
            hint = "check that it is up, and the address (its dashboard's, port 8265)"
            return UnreachableError(f"no cluster answers at {self.url}; {hint}")
        return ClusterError(f"{self.url} answered, but not as a Ray dashboard does ({error}); check the address")

    def _translate(self, error: Exception, what: str) -> ClusterError:
        text = " ".join(str(error).split())
        if type(error).__name__ == "AuthenticationError":
            return self._not_let_in(str(error))
        if "Version check returned 404" in text:
            return ClusterError(f"{self.url} answered, but not as a Ray dashboard does (404); check the address")
        if f"Job {what} does not exist" in text and "404" in text:
            return NoSuchJobError(f"{what}: {self.url} knows no such job; see: {self._address.command('list')}")
        if "already exists" in text:
            hint = f"choose another, or follow it: {self._address.command(f'logs -f {quote(what)}')}"
            return ClusterError(f"{self.url} has a job of this submission_id already; {hint}")
        # Ray tells its own refusals by a traceback; a bare 500 comes of something before it, or of a head that starts
        codes = (500, 502, 503, 504) if "Traceback" not in text else (502, 503, 504)
        if any(f"status code {code}" in text for code in codes):
            return UnreachableError(f"{self.url} is not ready: {text[:300]}")
        return ClusterError(f"{self.url} refused ({what}): {text[:500]}")

    def _not_let_in(self, text: str) -> ClusterError:
        if text.startswith(_REFUSED) and not any(words in text for words in _TOKEN_WORDS):
            hint = "check the address, and whether something before the dashboard asks for a login"
            said = " ".join(text.partition("\n\n")[0].split())[:200]  # Ray's own advice on tokens follows
            return ClusterError(f"{self.url} refused, but not as a Ray dashboard does ({said}); {hint}")
        is_missing = _TOKEN_WORDS[0] in text or not text.startswith(_REFUSED)
        return ClusterError(
            f"{self.url}: {access.refused_token(os.environ, is_missing=is_missing, headers=self._address.headers)}"
        )
