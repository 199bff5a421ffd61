"""The Jobs API as a laptop meets it: absent, refusing, forgetful, and the real one."""

import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.job_submission import JobErrorType

from rayferry.job.earlier import Earlier, attempt_id
from rayferry.job.spec import parse
from rayferry.submit import client
from rayferry.submit.client import Cluster, ClusterError, JobInfo, NoSuchJobError, NotKnownError, UnreachableError
from rayferry.submit.config import Address
from rayferry.submit.follow import follow
from rayferry.submit.local.ports import free_ports
from rayferry.submit.request import build_request, new_submission_id

PACKAGES = "/api/packages/"
JOBS = "/api/jobs/"


@pytest.fixture
def request_of(spec):
    """A request to a cluster."""

    def make(url, submission_id="job-1"):
        return build_request(spec, url, submission_id)

    return make


@pytest.fixture
def closed_url():
    return f"http://127.0.0.1:{free_ports(1)[0]}"


def test_an_address_where_nothing_listens_is_unreachable(closed_url):
    with pytest.raises(UnreachableError, match=rf"no cluster answers at {closed_url}; check that it is up"):
        Cluster(closed_url)


def test_a_host_without_a_name_is_unreachable():
    with pytest.raises(UnreachableError, match="no cluster answers"):
        Cluster("http://no-such-host.invalid:8265")


def test_an_address_that_accepts_and_says_nothing_is_unreachable(monkeypatch):
    monkeypatch.setattr("rayferry.submit.transport._TIMEOUT_S", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="no cluster answers"):
            Cluster(url)


def test_a_token_that_is_wrong_is_told_with_where_it_is_from(serve_ray):
    api = serve_ray(token="secret")
    with pytest.raises(ClusterError, match=r"does not accept the token from .*RAY_AUTH_TOKEN_PATH\)"):
        Cluster(api.url)


def test_a_token_that_is_missing_is_told_with_the_variables_to_set(ray_api, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    ray_api.faults[("GET", "/api/version")] = [(401, "Unauthorized: Missing authentication token")]
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"):
        Cluster(ray_api.url)


def test_a_token_among_the_headers_wins_over_the_one_of_the_surroundings(serve_ray):
    api = serve_ray(token="theirs")
    assert Cluster(Address(api.url, "", headers={"authorization": "Bearer theirs"})).version()


def test_a_token_among_the_headers_wins_over_netrc(serve_ray, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    api = serve_ray(token="theirs")
    assert Cluster(Address(api.url, "", headers={"Authorization": "Bearer theirs"})).version()


def test_a_header_that_http_does_not_allow_is_refused_without_showing_it(ray_api):
    with pytest.raises(ClusterError, match="a character that HTTP does not allow") as caught:
        Cluster(Address(ray_api.url, "", headers={"X-Key": "hidden\nhidden"}))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_request_is_not_sent_on_to_another_place(ray_api, serve_ray, status):
    other = serve_ray()
    ray_api.faults[("GET", "/api/version")] = [(status, other.url + "/api/version")]
    with pytest.raises(ClusterError, match=f"{ray_api.url} sends on to another address; give that one: {other.url}"):
        Cluster(ray_api.url)
    assert other.requests == []


def test_certificates_that_are_not_there_are_told_by_their_variable(ray_api, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/ca.pem")
    with pytest.raises(ClusterError, match=r"/no/such/ca.pem \(REQUESTS_CA_BUNDLE\) are not there"):
        Cluster(ray_api.url.replace("http:", "https:"))


def test_certificates_do_not_matter_where_no_tls_is_spoken(ray_api, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/ca.pem")
    assert Cluster(ray_api.url).version()


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_cluster_on_this_machine_is_asked_past_a_proxy(ray_api, closed_url, monkeypatch, name):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(name, closed_url)
    assert Cluster(ray_api.url).version()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_not_unreachable(ray_api, status):
    ray_api.faults[("GET", "/api/version")] = [(status, "Forbidden: Invalid authentication token")]
    with pytest.raises(ClusterError) as caught:
        Cluster(ray_api.url)
    assert not isinstance(caught.value, UnreachableError)


@pytest.mark.parametrize(
    ("status", "text"),
    [(403, "<Error><Code>AccessDenied</Code></Error>"), (401, "sign in first"), (401, ""), (403, "")],
)
def test_a_refusal_that_is_not_of_ray_is_not_told_as_a_matter_of_tokens(ray_api, status, text):
    ray_api.faults[("GET", "/api/version")] = [(status, text)]
    with pytest.raises(ClusterError, match=f"{ray_api.url} refused, but not as a Ray dashboard does") as caught:
        Cluster(ray_api.url)
    assert "token" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, "not found"),
        (200, "<html>a web server</html>"),
        (200, "{}"),
        (200, "[]"),
        (200, '{"ray_version": "not a version"}'),
        (500, "boom"),
        (302, ""),
    ],
)
def test_what_is_no_dashboard_is_refused_in_plain_words(ray_api, status, text):
    ray_api.faults[("GET", "/api/version")] = [(status, text)] * 3
    with pytest.raises(ClusterError, match=ray_api.url):
        Cluster(ray_api.url)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_without_a_head_behind_it_is_unreachable(ray_api, status):
    cluster = Cluster(ray_api.url)
    ray_api.faults[("GET", JOBS)] = [(status, "Bad Gateway")]
    with pytest.raises(UnreachableError):
        cluster.info("job-1")


@pytest.mark.parametrize("fault", ["before", "after", "cut"])
def test_an_answer_that_is_lost_on_its_way_is_unreachable(ray_api, request_of, fault):
    cluster = Cluster(ray_api.url)
    cluster.submit(request_of(ray_api.url))
    ray_api.faults[("GET", JOBS)] = [fault]
    with pytest.raises(UnreachableError):
        cluster.info("job-1")


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_environment_does_not_override_the_address(ray_api, closed_url, monkeypatch, variable):
    monkeypatch.setenv(variable, closed_url)
    assert Cluster(ray_api.url).version()["ray_version"] == "2.60.0"


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_environment_is_left_as_it_was(closed_url, monkeypatch, variable):
    monkeypatch.setenv(variable, "http://elsewhere:8265")
    with pytest.raises(UnreachableError):
        Cluster(closed_url)
    assert os.environ[variable] == "http://elsewhere:8265"


def test_a_submitted_job_is_sent_whole(ray_api, request_of):
    request = request_of(ray_api.url)
    Cluster(ray_api.url).submit(request)
    sent = ray_api.jobs["job-1"]["sent"]
    assert (sent["entrypoint"], sent["metadata"]) == (request.entrypoint, request.metadata)


def test_the_package_arrives_byte_for_byte_where_the_runtime_env_points(ray_api, request_of):
    request = request_of(ray_api.url)
    Cluster(ray_api.url).submit(request)
    uri = ray_api.jobs["job-1"]["sent"]["runtime_env"]["working_dir"]
    assert ray_api.packages[PACKAGES + uri.replace("://", "/")] == request.content


def test_a_package_that_the_cluster_has_is_not_sent_again(ray_api, request_of):
    cluster = Cluster(ray_api.url)
    cluster.submit(request_of(ray_api.url, "job-1"))
    cluster.submit(request_of(ray_api.url, "job-2"))
    assert sum(method == "PUT" for method, _ in ray_api.requests) == 1


def test_a_request_can_be_submitted_and_printed_after(ray_api, request_of):
    request = request_of(ray_api.url)
    before = request.to_json()
    Cluster(ray_api.url).submit(request)
    assert request.to_json() == before


@pytest.mark.parametrize("fault", ["before", "after", "cut", (503, "not ready"), (502, "bad"), (504, "slow")])
def test_a_post_whose_answer_is_lost_starts_one_job(ray_api, request_of, fault):
    ray_api.faults[("POST", JOBS)] = [fault]
    Cluster(ray_api.url).submit(request_of(ray_api.url), sleep=lambda _seconds: None)
    assert list(ray_api.jobs) == ["job-1"]


@pytest.mark.parametrize("fault", ["after", "cut"])
def test_a_post_that_was_carried_out_is_not_repeated(ray_api, request_of, fault):
    ray_api.faults[("POST", JOBS)] = [fault]
    Cluster(ray_api.url).submit(request_of(ray_api.url), sleep=lambda _seconds: None)
    assert ray_api.num("POST", JOBS) == 1


def test_a_job_that_started_is_found_though_the_question_was_lost_too(ray_api, request_of):
    ray_api.faults[("POST", JOBS)] = ["after"]
    ray_api.faults[("GET", JOBS)] = ["before"]
    Cluster(ray_api.url).submit(request_of(ray_api.url), sleep=lambda _seconds: None)
    assert list(ray_api.jobs) == ["job-1"]


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_an_upload_that_breaks_is_repeated(ray_api, request_of, method):
    ray_api.faults[(method, PACKAGES)] = ["before", "before"]
    request = request_of(ray_api.url)
    Cluster(ray_api.url).submit(request, sleep=lambda _seconds: None)
    assert list(ray_api.packages.values()) == [request.content]


@pytest.mark.parametrize("fault", ["before", (500, "an error of a proxy"), (502, "no head")])
def test_a_cluster_that_takes_no_job_is_given_up_after_a_minute_and_more(ray_api, request_of, fault):
    slept = []
    ray_api.faults[("POST", JOBS)] = [fault] * 20
    cluster = Cluster(ray_api.url)
    with pytest.raises(UnreachableError):
        cluster.submit(request_of(ray_api.url), sleep=slept.append)
    assert ray_api.num("POST", JOBS) == 8
    assert 45 <= sum(slept) <= 75  # 60, with what chance adds


def test_a_job_that_may_have_started_is_not_told_as_failed(ray_api, request_of):
    ray_api.faults[("POST", JOBS)] = ["after"] + ["before"] * 20
    ray_api.faults[("GET", JOBS)] = ["before"] * 20
    cluster = Cluster(ray_api.url)
    with pytest.raises(NotKnownError, match=r"whether job-1 was started is not known; see: rayferry status") as caught:
        cluster.submit(request_of(ray_api.url), sleep=lambda _s: None)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("fault", ["before", "cut", (500, "an error of a proxy"), (503, "starting")])
def test_a_question_that_breaks_is_asked_again(ray_api, fault, monkeypatch):
    monkeypatch.setattr("rayferry.submit.transport._READ_PAUSE_S", 0.0)
    ray_api.faults[("GET", "/api/v0/nodes")] = [fault, fault]
    assert len(Cluster(ray_api.url).nodes()[0]) == 1


def test_a_refusal_is_not_repeated(ray_api, request_of):
    ray_api.faults[("POST", JOBS)] = [(400, "bad runtime_env")]
    cluster = Cluster(ray_api.url)
    with pytest.raises(ClusterError, match="400: bad runtime_env"):
        cluster.submit(request_of(ray_api.url), sleep=pytest.fail)
    assert ray_api.num("POST", JOBS) == 1


def test_an_id_that_another_job_has_is_refused_with_how_to_follow_it(ray_api, request_of):
    cluster = Cluster(ray_api.url)
    cluster.submit(request_of(ray_api.url))
    with pytest.raises(ClusterError, match=r"has a job of this submission_id already; .*: rayferry logs -f job-1$"):
        cluster.submit(request_of(ray_api.url), sleep=pytest.fail)


def test_a_strangers_job_of_the_same_id_is_not_taken_for_ours(ray_api, request_of):
    cluster = Cluster(ray_api.url)
    cluster.submit(replace(request_of(ray_api.url), metadata={"rayferry_output_uri": "s3://theirs/"}))
    ray_api.faults[("POST", JOBS)] = ["before"]
    with pytest.raises(ClusterError, match="has a job of this submission_id already"):
        cluster.submit(request_of(ray_api.url), sleep=lambda _seconds: None)


def test_a_job_that_is_not_known_is_told_so(ray_api):
    with pytest.raises(NoSuchJobError, match=r"nope: .* knows no such job; see: rayferry list"):
        Cluster(ray_api.url).info("nope")


@pytest.fixture
def attempts(ray_api, request_of):
    """Starts the attempts of one run, whose states these are; gives the cluster."""

    def start(*statuses):
        cluster = Cluster(ray_api.url)
        for number, status in enumerate(statuses, 1):
            sent = request_of(ray_api.url)
            metadata = sent.metadata | {"rayferry_run": "job-1"}
            cluster.submit(replace(sent, submission_id=attempt_id("job-1", number), metadata=metadata))
            ray_api.jobs[attempt_id("job-1", number)]["status"] = status
        return cluster

    return start


@pytest.mark.parametrize("asked", ["job-1", "job-1-a2", "job-1-a3"])
def test_the_last_attempt_of_a_run_is_found_by_the_id_of_any(attempts, asked):
    cluster = attempts("FAILED", "FAILED", "RUNNING")
    assert cluster.last_attempt(asked).submission_id == "job-1-a3"


@pytest.mark.parametrize("asked", ["job-1", "job-1-a2"])
def test_the_last_attempt_is_found_where_the_one_asked_for_is_forgotten(attempts, ray_api, asked):
    cluster = attempts("FAILED", "FAILED", "RUNNING")
    del ray_api.jobs[asked]
    assert cluster.last_attempt(asked).submission_id == "job-1-a3"


@pytest.mark.parametrize("asked", ["job-1-a4", "job", "job-1-a", "job-12"])
def test_an_id_that_none_followed_is_not_known(attempts, asked):
    with pytest.raises(NoSuchJobError):
        attempts("FAILED", "FAILED", "RUNNING").last_attempt(asked)


def test_where_the_cluster_does_not_list_its_jobs_an_attempt_is_told_by_itself(attempts, monkeypatch):
    def refused():
        raise ClusterError("no")

    cluster = attempts("FAILED", "RUNNING")
    monkeypatch.setattr(cluster, "jobs", refused)
    assert cluster.last_attempt("job-1").submission_id == "job-1"


def test_a_later_attempt_says_of_which_run_it_is(job_data):
    spec = parse(job_data, "job.yaml")
    metadata = build_request(spec, "http://head:8265", "job-1-a2", Earlier(run="job-1/1", later=True)).metadata
    assert metadata["rayferry_run"] == "job-1"


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "RUNNING", "PENDING", "SUCCEEDED"])
def test_an_attempt_that_none_followed_is_the_last(attempts, ray_api, request_of, status):
    cluster = attempts(status)
    other = replace(request_of(ray_api.url), submission_id="job-2", metadata={})
    cluster.submit(other)
    assert cluster.last_attempt("job-1").submission_id == "job-1"


def test_a_run_that_is_not_known_has_no_last_attempt(attempts):
    with pytest.raises(NoSuchJobError, match="nope"):
        attempts("FAILED").last_attempt("nope")


def test_a_job_comes_back_as_a_value(ray_api, request_of):
    request = request_of(ray_api.url)
    cluster = Cluster(ray_api.url)
    cluster.submit(request)
    info = JobInfo("job-1", "SUCCEEDED", "it is SUCCEEDED", None, 1000, None, request.metadata)
    assert cluster.info("job-1") == info


def test_a_failed_job_has_rays_own_word_for_why(ray_api, request_of):
    cluster = Cluster(ray_api.url)
    cluster.submit(request_of(ray_api.url))
    ray_api.statuses, ray_api.error_type = ["FAILED"], "RUNTIME_ENV_SETUP_FAILURE"
    assert cluster.info("job-1").error_type == "RUNTIME_ENV_SETUP_FAILURE"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"error_type": None}, None),
        ({"error_type": JobErrorType.JOB_SUPERVISOR_ACTOR_DIED}, "JOB_SUPERVISOR_ACTOR_DIED"),
    ],
    ids=str,
)
def test_an_error_type_is_a_word_or_none_as_the_ray_has_it(fields, expected):
    found = SimpleNamespace(
        submission_id="job-1", status="FAILED", message="", start_time=1, end_time=2, metadata={}, **fields
    )
    assert client._job_info(found).error_type == expected


def test_the_log_that_ray_puts_into_its_message_is_cut(ray_api, request_of):
    cluster = Cluster(ray_api.url)
    cluster.submit(request_of(ray_api.url))
    ray_api.message = "Job entrypoint command failed with exit code 1, last available logs (truncated):\nline\nline"
    assert cluster.info("job-1").message == "Job entrypoint command failed with exit code 1"


def test_a_job_tells_its_output_and_name(ray_api, request_of, job_data):
    cluster = Cluster(ray_api.url)
    cluster.submit(request_of(ray_api.url))
    info = cluster.info("job-1")
    assert (info.output_uri, info.name) == (job_data["output"]["uri"] + "/", "reviews")


def test_jobs_come_newest_first(ray_api, request_of):
    cluster = Cluster(ray_api.url)
    for name in ["job-1", "job-2", "job-3"]:
        cluster.submit(request_of(ray_api.url, name))
    assert [job.submission_id for job in cluster.jobs()] == ["job-3", "job-2", "job-1"]


def test_a_stopped_job_says_so(ray_api, request_of):
    cluster = Cluster(ray_api.url)
    cluster.submit(request_of(ray_api.url))
    cluster.stop("job-1")
    assert cluster.info("job-1").status == "STOPPED"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], []),
        ([{"state": "ALIVE", "resources_total": {"CPU": 4.0}}], [4.0]),
        ([{"state": "DEAD", "resources_total": {"CPU": 4.0}}], []),
        ([{"state": "ALIVE", "resources_total": None}], [0]),
        ([{"state": "ALIVE", "resources_total": {"GPU": 1.0}}], [0]),
    ],
)
def test_only_living_nodes_are_counted(ray_api, nodes, expected):
    ray_api.nodes = nodes
    found, _ = Cluster(ray_api.url).nodes()
    assert [node.num_cpus for node in found] == expected


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/api/v0/nodes", (500, '{"result": false, "msg": "GCS is not there", "data": {}}')),
        ("/api/v0/nodes", (429, "too many")),
        ("/api/v0/nodes", (200, "<html>")),
        ("/api/v0/nodes", (200, '{"result": false, "msg": "failed", "data": {}}')),
        ("/api/v0/nodes", (200, '{"result": false, "msg": "failed", "data": null}')),
        ("/api/v0/nodes", "cut"),
        ("/api/cluster_status", (500, '{"result": false, "msg": "GCS is not there", "data": {}}')),
        ("/api/cluster_status", (200, "<html>")),
        ("/api/cluster_status", (200, '{"result": false, "msg": "failed", "data": null}')),
        ("/api/cluster_status", "cut"),
    ],
)
def test_nodes_that_cannot_be_told_are_a_cluster_error(ray_api, path, answer):
    cluster = Cluster(ray_api.url)
    ray_api.faults[("GET", path)] = [answer] * 3
    with pytest.raises(ClusterError, match=ray_api.url):
        cluster.nodes()


@pytest.mark.parametrize(
    ("status", "autoscaling"),
    [
        ('{"data": {}}', False),
        ('{"data": {"clusterStatus": null}}', False),
        ('{"data": {"clusterStatus": {"autoscalerReport": {"activeNodes": {"node_1f": 1}}}}}', False),
        ('{"data": {"clusterStatus": {"autoscalerReport": {"activeNodes": {"ray.worker.gpu": 1}}}}}', True),
    ],
)
def test_a_cluster_that_can_grow_is_told_by_its_node_types(ray_api, status, autoscaling):
    ray_api.faults[("GET", "/api/cluster_status")] = [(200, status)]
    assert Cluster(ray_api.url).nodes()[1] is autoscaling


@pytest.mark.parametrize(
    ("node", "here"),
    [
        ({}, True),
        ({"is_head_node": True, "node_ip": "127.0.0.1"}, True),
        ({"is_head_node": True, "node_ip": "192.0.2.1"}, False),
        ({"is_head_node": True, "node_ip": "2001:db8::1"}, False),
        ({"is_head_node": False, "node_ip": "192.0.2.1"}, True),
    ],
)
def test_a_loopback_address_is_this_machine_unless_the_head_has_anothers_ip(ray_api, node, here):
    ray_api.nodes = [{"state": "ALIVE", "resources_total": {}, **node}]
    assert Cluster(ray_api.url).is_here() is here


def test_the_real_cluster_is_on_this_machine(stack):
    assert Cluster(stack.address).is_here()


def test_the_real_cluster_does_not_know_a_job_that_was_never_sent(stack):
    with pytest.raises(NoSuchJobError):
        Cluster(stack.address).info("never-sent")


@pytest.mark.parametrize("method", ["logs", "stop"])
def test_the_real_cluster_says_the_same_of_its_log_and_its_stop(stack, method):
    with pytest.raises(NoSuchJobError):
        getattr(Cluster(stack.address), method)("never-sent")


@pytest.fixture(scope="module")
def real_job(stack):
    """A job that ran on the real cluster, from a package like any other, and what was shown of it."""
    uris = {"input": {"uri": "s3://rayferry/none"}, "output": {"uri": "s3://rayferry/none-out"}}
    spec = parse({"name": "real", "model": "m", **uris}, "here")
    request = build_request(spec, stack.address, new_submission_id("real"))
    program = "for n in range(200): print('line', n, 'é')"
    tail = "python -c \"import rayferry.job; print(rayferry.job.__file__, end='')\"; exit 3"
    request = replace(request, entrypoint=f'python -c "{program}"; ls spec.json; {tail}')
    cluster = Cluster(stack.address)
    cluster.submit(request)
    shown = []
    info = follow(cluster, request.submission_id, shown.append)
    # Ray has this line in a buffer while it starts the process, which may be quicker
    shown = [line for line in shown if not line.startswith("Running entrypoint for job")]
    return cluster, request, shown, info


def test_the_real_cluster_runs_the_package_that_was_sent(real_job):
    _, _, shown, _ = real_job
    assert (shown[-2], "working_dir_files" in shown[-1]) == ("spec.json", True)


def test_the_real_log_is_shown_once_to_its_last_character(real_job):
    _, _, shown, _ = real_job
    assert shown[-202:-2] == [f"line {n} é" for n in range(200)]


def test_the_real_cluster_tells_how_the_driver_ended(real_job):
    _, request, _, info = real_job
    assert (info.status, info.exit_code, info.metadata) == ("FAILED", 3, request.metadata)


def test_the_real_cluster_refuses_an_id_twice(real_job):
    cluster, request, _, _ = real_job
    with pytest.raises(ClusterError, match="has a job of this submission_id already"):
        cluster.submit(request, sleep=pytest.fail)


def test_the_real_cluster_lists_the_job(real_job):
    cluster, request, _, info = real_job
    assert info in [job for job in cluster.jobs() if job.submission_id == request.submission_id]


def test_the_real_cluster_tells_its_nodes(real_job):
    nodes, autoscaling = real_job[0].nodes()
    assert (len(nodes), nodes[0].num_cpus > 0, autoscaling) == (1, True, False)


HOSTILE = r"""
import sys, time
out = sys.stdout.buffer
out.write(b"first\n"); out.flush(); time.sleep(2)
out.write(b"bad " + bytes([255, 254]) + b" byte\n"); out.flush(); time.sleep(4)
out.write(b"x" * (5 << 20) + b"\nlast\n"); out.flush(); time.sleep(2)
"""


def test_the_real_log_is_shown_whole_in_spite_of_a_bad_byte_and_a_line_of_5_mib(real_job, tmp_path):
    cluster, request, _, _ = real_job
    (tmp_path / "hostile.py").write_text(HOSTILE)
    name = new_submission_id("hostile")
    cluster.submit(replace(request, submission_id=name, entrypoint=f"python {tmp_path / 'hostile.py'}"))
    shown, during = [], []

    def show(line):
        if not line.startswith("Running entrypoint"):  # Ray may write it late
            shown.append(line)
            during.append(cluster.info(name).status)

    info = follow(cluster, name, show)
    at = shown.index("first")
    assert [line[:20] for line in shown[at:]] == ["first", "bad \ufffd\ufffd byte", "x" * 20, "last"]
    assert (len(shown[at + 2]), info.status) == (5 << 20, "SUCCEEDED")
    assert during[at + 1] == "RUNNING"  # it did not wait for the end
