"""The Jobs API, by Ray's own SDK. The only module that imports ray.job_submission."""

import io
import logging
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
import requests
import urllib3
from ray.job_submission import JobSubmissionClient
from requests.exceptions import ChunkedEncodingError, InvalidHeader, InvalidURL

from rayferry.job.errors import RayferryError
from rayferry.job.placement import Node, can_grow
from rayferry.submit import access
from rayferry.submit.config import ADDRESS_VARIABLES, Address, is_loopback
from rayferry.submit.request import METADATA_PREFIX, SubmitRequest

for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they tell of every upload and every closed socket

_TIMEOUT_S = (5, 60)  # connect, read
_SUBMIT_TRIES = 8
_MAX_SUBMIT_PAUSE_S = 15.0
_READ_TRIES = 3
_READ_PAUSE_S = 0.5
_HEARTBEAT_S = 20.0
# Source: `format_authentication_http_error` puts the first before a 401's and a 403's text, whoever sent it; the
# second are what Ray's own `token_auth_middleware` sends (Ray 2.60).
_REFUSED = ("Authentication required:", "Authentication failed:")
_TOKEN_WORDS = ("Missing authentication token", "Invalid authentication token")
_LOG_FOLLOWS = ", last available logs"  # and up to 20,000 characters of it, in Ray's message on a job that failed
T = TypeVar("T")
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class ClusterError(RayferryError):
    """The cluster could not be asked, or refused."""


class UnreachableError(ClusterError):
    """The cluster did not answer. Trying again may help."""


class NotKnownError(ClusterError):
    """Contact was lost while a job was sent: it may run."""

    exit_code = 5


class NoSuchJobError(ClusterError):
    """The cluster does not know the id."""


@dataclass(frozen=True)
class JobInfo:
    """A Ray job as the cluster tells it.

    Attributes:
        submission_id: its id.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        message: Ray's words on the status, without the log that it puts after them.
        exit_code: of the driver, once it ended by itself.
        start_ms: Unix time in milliseconds, or None.
        end_ms: likewise.
        metadata: what was sent with it.
        error_type: Ray's word for why it failed, such as RUNTIME_ENV_SETUP_FAILURE; None where Ray has none.
    """

    submission_id: str
    status: str
    message: str = ""
    exit_code: int | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    error_type: str | None = None

    @property
    def is_over(self) -> bool:
        """True once the status cannot change any more."""
        return self.status in TERMINAL

    @property
    def output_uri(self) -> str | None:
        """Where its answers are, if Rayferry submitted it."""
        return self.metadata.get(METADATA_PREFIX + "output_uri")

    @property
    def name(self) -> str:
        """The job file's name for it, or ""."""
        return self.metadata.get(METADATA_PREFIX + "name", "")


class _Client(JobSubmissionClient):  # type: ignore[misc]  # Ray's SDK has no types
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


class Cluster:
    """One cluster's Jobs API. Every method raises `ClusterError` in plain words, and nothing else."""

    def __init__(self, address: Address | str) -> None:
        """Connects.

        Args:
            address: of the dashboard, and how it is spoken to; or its URL alone.

        Raises:
            UnreachableError: nothing answers there.
            ClusterError: something else than a Ray dashboard answers, or it refuses.
        """
        if isinstance(address, str):
            address = Address(address, "")
        self.url = address.url
        self._verify, said = access.certificates(address.verify, os.environ if address.url.startswith("https:") else {})
        if isinstance(self._verify, str) and not Path(self._verify).exists():
            msg = f"the certificates {self._verify} ({said}) are not there; give a file that is, or unset it"
            raise ClusterError(msg)
        if self._verify is False:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # it was asked for
        # Ray lets these override the address that it is given.
        hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
        try:
            self._client = self._read(
                lambda: _Client(
                    address.url,
                    verify=self._verify,
                    headers=dict(address.headers),
                    cookies=dict(address.cookies) or None,
                ),
                "connect",
            )
        finally:
            os.environ.update(hidden)

    def version(self) -> dict[str, str]:
        """`ray_version`, `session_name` and more, as `/api/version` tells them."""
        return dict(self._get("/api/version"))

    def nodes(self) -> tuple[list[Node], bool]:
        """The nodes that are alive, and whether the cluster can start further ones."""
        listing = self._alive()
        status = self._get("/api/cluster_status", lambda value: value["data"].get("clusterStatus") or {})
        alive = [Node.from_ray(node["resources_total"] or {}, node.get("labels")) for node in listing]
        return alive, can_grow(alive, status)

    def is_here(self) -> bool:
        """True if the head runs on this machine. Its address alone does not tell: a tunnel's end is on loopback too."""
        if not Address(self.url, "").is_loopback:
            return False
        heads = [node["node_ip"] for node in self._alive() if node.get("is_head_node")]
        return not heads or any(map(_is_of_this_machine, heads))

    def _alive(self) -> list[dict[str, Any]]:
        def living(value: Any) -> list[dict[str, Any]]:
            return [node for node in value["data"]["result"]["result"] if node["state"] == "ALIVE"]

        return cast("list[dict[str, Any]]", self._get("/api/v0/nodes?detail=1&limit=10000", living))

    def submit(self, request: SubmitRequest, sleep: Callable[[float], None] = time.sleep) -> None:
        """Uploads the package and starts the job, once, however often the request has to be repeated.

        Raises:
            NotKnownError: the cluster stopped answering, and the job may have started.
            ClusterError: the cluster refused, or did not answer; nothing was started.
        """
        with tempfile.TemporaryDirectory(prefix="rayferry-") as folder:
            package = Path(folder) / request.package["name"]
            package.write_bytes(request.content)
            pause = 1.0
            for attempt in count(1):
                # Ray writes the package's URI into the dictionary that it is given
                env = {**request.runtime_env, "working_dir": str(package)}
                try:
                    self._ask(
                        lambda env=env: self._client.submit_job(  # type: ignore[misc]
                            entrypoint=request.entrypoint,
                            submission_id=request.submission_id,
                            runtime_env=env,
                            metadata=request.metadata,
                        ),
                        request.submission_id,
                    )
                except ClusterError as error:
                    is_refusal = not isinstance(error, UnreachableError)
                    if is_refusal and attempt == 1:
                        raise
                    started = self._started(request)
                    if started:
                        return
                    if is_refusal and started is False:
                        raise
                    if attempt == _SUBMIT_TRIES:
                        raise error if started is False else self._not_known(request.submission_id) from error
                    sleep(pause)
                    pause = min(2 * pause, _MAX_SUBMIT_PAUSE_S)
                else:
                    return

    def _started(self, request: SubmitRequest) -> bool | None:
        """True if the cluster has this very job, although its answer was lost; None if it does not tell."""
        try:
            return self.info(request.submission_id).metadata == request.metadata
        except NoSuchJobError:
            return False
        except ClusterError:
            return None

    def _not_known(self, submission_id: str) -> "NotKnownError":
        return NotKnownError(
            f"{self.url} does not answer any more, and whether {submission_id} was started is not known; "
            f"see: rayferry status {submission_id}, or send it again with --submission-id {submission_id}"
        )

    def info(self, submission_id: str) -> JobInfo:
        """One job.

        Raises:
            NoSuchJobError: the cluster has no job of this id.
        """
        found = self._ask(lambda: self._client.get_job_info(submission_id), submission_id)
        return _job_info(found)

    def jobs(self) -> list[JobInfo]:
        """All jobs that came in through the Jobs API, newest first."""
        found = [job for job in self._read(self._client.list_jobs, "list") if job.submission_id]
        return sorted(map(_job_info, found), key=lambda job: job.start_ms or 0, reverse=True)

    def logs(self, submission_id: str) -> str:
        """The whole driver log."""
        try:
            return str(self._ask(lambda: self._client.get_job_logs(submission_id), submission_id))
        except ClusterError as error:
            if "UnicodeDecodeError" not in str(error.__cause__):
                raise
            return self._logs_as_bytes(submission_id)

    def _logs_as_bytes(self, submission_id: str) -> str:
        """The same by another way: the Jobs API gives nothing at all of a log that has one bad byte."""
        node_id = self._ask(lambda: self._client.get_job_info(submission_id), submission_id).driver_node_id
        path = f"/api/v0/logs/file?node_id={node_id}&filename=job-driver-{submission_id}.log&lines=-1"
        content = self._get(path, read=lambda answer: answer.content)
        with io.TextIOWrapper(io.BytesIO(content), "utf-8", errors="replace") as text:
            return text.read()  # line ends as the Jobs API has them

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """The driver log from its first byte on, for as long as the connection holds. Its end proves nothing."""
        return self._client.tail_job_logs(submission_id)

    def stop(self, submission_id: str) -> None:
        """Asks the job to end. It has not ended when this returns."""
        self._ask(lambda: self._client.stop_job(submission_id), submission_id)

    def _get(
        self,
        path: str,
        part: Callable[[Any], Any] = lambda value: value,
        read: Callable[[requests.Response], Any] = requests.Response.json,
    ) -> Any:
        def call() -> Any:
            answer = self._client._do_request("GET", path)  # noqa: SLF001  # it carries the authentication
            answer.raise_for_status()
            return part(read(answer))

        return self._read(call, path)

    def _read(self, call: Callable[[], T], what: str) -> T:
        """As `_ask`, for what may be asked again: a connection that was made and broke is no answer yet."""
        for _ in range(_READ_TRIES - 1):
            try:
                return self._ask(call, what)
            except UnreachableError as error:
                if "Failed to establish a new connection" in str(error.__cause__):
                    raise
            time.sleep(_READ_PAUSE_S)
        return self._ask(call, what)

    def _ask(self, call: Callable[[], T], what: str) -> T:
        try:
            return call()
        except ClusterError:
            raise
        except (InvalidHeader, UnicodeEncodeError):  # whose text has the value, and so maybe a secret
            msg = "a header, or the token, has a character that HTTP does not allow; look for line ends, and quotes"
            raise ClusterError(msg) from None
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
            return NoSuchJobError(f"{what}: {self.url} knows no such job; see: rayferry list")
        if "already exists" in text:
            hint = f"choose another, or follow it: rayferry logs -f {what}"
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
        return ClusterError(f"{self.url}: {access.refused_token(os.environ, is_missing=is_missing)}")


def _is_of_this_machine(ip: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


def _job_info(found: Any) -> JobInfo:
    return JobInfo(
        submission_id=found.submission_id,
        status=str(getattr(found.status, "value", found.status)),
        message=(found.message or "").partition(_LOG_FOLLOWS)[0],
        exit_code=getattr(found, "driver_exit_code", None),  # an older Ray has none
        start_ms=found.start_time,
        end_ms=found.end_time,
        metadata=dict(found.metadata or {}),
        error_type=_error_type(found),
    )


def _error_type(found: Any) -> str | None:
    told = getattr(found, "error_type", None)  # an older Ray has none
    return str(getattr(told, "value", told)) if told else None
