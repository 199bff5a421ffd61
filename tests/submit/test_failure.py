"""Why a job failed, sorted and told."""

import pytest
from ray.job_submission import JobErrorType

from rayferry.submit.client import JobInfo
from rayferry.submit.failure import explain, root_first, sort


def failed(error_type=None, exit_code=None, message="", **fields):
    return JobInfo("job-1", "FAILED", message, exit_code, error_type=error_type, **fields)


@pytest.mark.parametrize(
    ("error_type", "name"),
    [
        ("JOB_ENTRYPOINT_COMMAND_ERROR", "user"),
        ("RUNTIME_ENV_SETUP_FAILURE", "environment"),
        ("JOB_ENTRYPOINT_COMMAND_START_ERROR", "cluster"),
        ("JOB_SUPERVISOR_ACTOR_DIED", "cluster"),
        ("JOB_SUPERVISOR_ACTOR_START_FAILURE", "cluster"),
        ("JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "cluster"),
        ("JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "capacity"),
        ("JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", "capacity"),
    ],
)
def test_each_error_type_has_its_class(error_type, name):
    assert sort(failed(error_type)).name == name


@pytest.mark.parametrize("error_type", [one.value for one in JobErrorType])
def test_every_error_type_of_this_ray_is_sorted(error_type):
    assert sort(failed(error_type)) is not None


@pytest.mark.parametrize("code", [137, -9, 143, -15, 134, -6, 139, -11, 75])
def test_a_driver_that_was_killed_or_knows_that_it_was_the_cluster_is_the_clusters_matter(code):
    assert sort(failed("JOB_ENTRYPOINT_COMMAND_ERROR", code)).name == "cluster"


@pytest.mark.parametrize(
    ("exit_code", "message", "name"),
    [
        (1, "Job entrypoint command failed with exit code 1", "user"),
        (None, "runtime_env setup failed: no pip", "environment"),
        (None, "Job supervisor actor died: its node died", "cluster"),
        (None, "Job supervisor actor could not be scheduled: no node", "capacity"),
        (None, "Job supervisor actor failed to start within 900 seconds.", "capacity"),
        (None, "Unexpected error occurred: x", "cluster"),
    ],
)
def test_a_ray_without_error_types_is_taken_at_its_word(exit_code, message, name):
    assert sort(failed(None, exit_code, message)).name == name


UNSCHEDULABLE = "Job supervisor actor could not be scheduled: "


@pytest.mark.parametrize("error_type", ["JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", "JOB_SUPERVISOR_ACTOR_DIED", None])
@pytest.mark.parametrize(
    "message",
    [
        UNSCHEDULABLE + "The actor is not schedulable: Worker startup failed",
        UNSCHEDULABLE + "worker startup failed: exit code 1",
        "Job supervisor actor died: The runtime_env failed to be set up",
        UNSCHEDULABLE + "Failed to create runtime env for the job",
    ],
)
def test_a_worker_that_cannot_start_is_the_environments_matter(error_type, message):
    assert sort(failed(error_type, None, message)).name == "environment"


def test_no_room_stays_a_matter_of_capacity():
    message = UNSCHEDULABLE + "The node specified via NodeAffinitySchedulingStrategy doesn't exist any more"
    assert sort(failed("JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", None, message)).name == "capacity"


def test_an_error_type_of_a_ray_to_come_is_not_guessed_at():
    assert sort(failed("SOMETHING_NEW", None, "new words")) is None


@pytest.mark.parametrize("status", ["SUCCEEDED", "STOPPED", "RUNNING", "PENDING"])
def test_a_job_that_did_not_fail_has_no_class(status):
    assert sort(JobInfo("job-1", status)) is None


TRACEBACK = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    import rayferry
    ^^^^^^^^^^^^^^^
ModuleNotFoundError: No module named 'rayferry'
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", []),
        ("\n\n", []),
        ("a\nb\n", ["a", "b"]),
        ("1\n2\n3\n4\n5\n6\n7\n8\n", ["3", "4", "5", "6", "7", "8"]),
        ("a\n[rayferry] 10:00:00 error: no GPU\nb\n", ["no GPU", "a", "b"]),
        ("[rayferry] 10:00:00 error: first\n[rayferry] 10:00:01 error: last: why\n", ["last: why"]),
        ("[rayferry] 10:00:00 hello\na\n", ["a"]),
        ("\x1b[36m(pid=1)\x1b[0m boom   \n", ["(pid=1) boom"]),
        ("x" * 1000, ["x" * 240]),
        ("ValueError: x\n[rayferry] 10:00:00 error: ValueError: x\n", ["ValueError: x"]),
        ("(run pid=1) ray.exceptions.RayActorError: died\na\n", ["ray.exceptions.RayActorError: died", "a"]),
        ("KeyError: 1\nValueError: 2\n", ["ValueError: 2", "KeyError: 1"]),
        ("no Error: here\n", ["no Error: here"]),
    ],
)
def test_the_root_line_comes_first_and_then_the_last_lines(log, expected):
    assert root_first(log) == expected


def test_a_traceback_without_a_line_of_ours_has_its_last_line_first():
    assert root_first(TRACEBACK) == [
        "ModuleNotFoundError: No module named 'rayferry'",
        '  File "a.py", line 1, in <module>',
        "    import rayferry",
    ]


def test_a_traceback_that_leads_to_a_line_of_ours_is_left_out():
    chained = f"{TRACEBACK}\nThe above exception was the direct cause of the following exception:\n\n{TRACEBACK}"
    assert root_first(f"(run pid=1) out of memory\n{chained}[rayferry] 10:00:00 error: no module\n") == [
        "no module",
        "(run pid=1) out of memory",
        "ModuleNotFoundError: No module named 'rayferry'",
        "ModuleNotFoundError: No module named 'rayferry'",
    ]


def test_a_reason_of_several_lines_is_told_once():
    reason = [
        "ValueError: no tokenizer, as it can be made of none of",
        "  (1) a file of the library itself",
        "and so on",
    ]
    root = f"model 'm' could not be loaded: {' '.join(' '.join(reason).split())}" + " and on" * 100
    lines = [*reason, f"(worker pid=1) rayferry.job.errors.EngineError: {root}", "noise"]
    log = "\n".join([*lines, f"[rayferry] 10:00:00 error: {root}"])
    assert root_first(log) == [root, "and so on", "noise"]


def test_the_whole_explanation_is_exactly_this():
    info = failed("JOB_ENTRYPOINT_COMMAND_ERROR", 1, metadata={"rayferry_output_uri": "s3://bucket/out/"})
    assert explain(info, "noise\n[rayferry] 10:00:01 error: no GPU\n") == [
        "  the cause is in your job, or in what it asks for: mend what is named here, and submit it again",
        "  no GPU",
        "  noise",
        "the whole log: rayferry logs --raw job-1 or s3://bucket/out/_meta/driver.log",
    ]


def test_what_is_tried_again_asks_nothing_of_the_user():
    lines = explain(failed("JOB_SUPERVISOR_ACTOR_DIED", None), "", goes_on=True)
    assert lines[0] == "  the cause is in the cluster, not in your job"


def test_a_killed_driver_is_said_to_have_been_killed():
    assert "  the driver was killed (exit code 137), mostly for want of memory" in explain(failed(None, 137), "a\n")


def test_a_job_that_never_came_to_its_driver_is_explained_by_ray():
    info = failed("RUNTIME_ENV_SETUP_FAILURE", None, "runtime_env setup failed: no pip")
    assert explain(info, "a line of the supervisor\n")[1] == "  runtime_env setup failed: no pip"


def test_a_traceback_in_rays_message_has_its_root_line_first():
    info = failed("JOB_SUPERVISOR_ACTOR_START_FAILURE", None, f"Failed to start supervisor actor. {TRACEBACK}")
    assert explain(info, "")[1] == "  ModuleNotFoundError: No module named 'rayferry'"


def test_without_a_log_ray_has_the_word():
    assert explain(failed(None, 1, "it died"), "")[1] == "  it died"


def test_without_any_words_it_is_still_said_where_the_log_is():
    assert explain(failed("SOMETHING_NEW"), "") == ["the whole log: rayferry logs --raw job-1"]
