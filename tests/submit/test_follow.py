"""A job is followed to its true end, and every line of its log is shown once."""

import asyncio
import threading
import time

import pytest

from rayferry.submit import follow as follow_module
from rayferry.submit.client import ClusterError, JobInfo, NoSuchJobError, UnreachableError
from rayferry.submit.follow import Lines, LostContactError, follow, our_lines

LOG = "one\ntwo\nthree\nfour\n"
LINES = ["one", "two", "three", "four"]
DOWN = UnreachableError("no cluster answers")


@pytest.fixture
def watch():
    """Follows and gives the lines shown and the last state."""

    def run(cluster, **options):
        shown = []
        info = follow(cluster, "job-1", shown.append, **options)
        return shown, info

    return run


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_the_status_that_ended_the_job_comes_back(fake_cluster, watch, status):
    _, info = watch(fake_cluster([status]))
    assert info == JobInfo("job-1", status)


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param([["one\n", "two\n", "three\n", "four\n"]], id="whole"),
        pytest.param([[LOG]], id="in one piece"),
        pytest.param([list(LOG)], id="character by character"),
        pytest.param([["one\ntw", "o\nthree", "\nfour\n"]], id="lines split over pieces"),
        pytest.param([["one\n", "", "two\n", "", "three\nfour\n"]], id="empty pieces"),
        pytest.param([["one\n"], ["one\ntwo\n"], [LOG]], id="ends early and begins again, twice"),
        pytest.param([["one\ntw"], ["one\n", "two\nthr"], ["on", "e\ntwo\nthree\nfour\n"]], id="cut within a line"),
        pytest.param([["one\ntwo\nthree\n"], ["one\n"]], id="the second stream is shorter than what was shown"),
        pytest.param([[], [], []], id="never gives anything"),
        pytest.param([["one\n"]], id="loses the last lines"),
        pytest.param([["one\n", RuntimeError("close code 1006")], [LOG]], id="breaks and is opened again"),
        pytest.param([[OSError("reset")], [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")]], id="never works"),
        pytest.param([["one\n", asyncio.CancelledError()], [LOG]], id="is cancelled under it"),
        pytest.param([["one\n", TimeoutError()], ["one\n", ValueError("bad frame")]], id="odd errors"),
    ],
)
def test_each_line_is_shown_once_whatever_the_stream_does(fake_cluster, watch, streams):
    shown, _ = watch(fake_cluster(["RUNNING", "SUCCEEDED"], streams, log=LOG))
    assert shown == LINES


def test_a_stream_that_ends_while_the_job_runs_is_opened_again(fake_cluster, watch):
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], [["one\n"], ["one\n"], ["one\n"]], log=LOG)
    watch(cluster)
    assert cluster.num_tails >= 3


def test_a_stream_that_hangs_does_not_hold_up_the_end(fake_cluster, watch):
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], [["one\n", fake_cluster.HANG]], log=LOG, may_end=threading.Event())
    shown = []

    def show(line):
        shown.append(line)
        cluster.may_end.set()

    follow(cluster, "job-1", show)
    assert shown == LINES


def test_a_line_is_shown_while_the_job_still_runs(fake_cluster):
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], [["one\n", fake_cluster.HANG]], may_end=threading.Event())
    follow(cluster, "job-1", lambda _line: cluster.may_end.set())
    assert cluster.may_end.is_set()


def test_a_last_line_without_newline_is_shown(fake_cluster, watch):
    shown, _ = watch(fake_cluster(["RUNNING", "FAILED"], [["one\ntw"]], log="one\ntwo"))
    assert shown == ["one", "two"]


def test_lines_are_shown_once_when_the_whole_log_cannot_be_had(fake_cluster, watch):
    shown, _ = watch(fake_cluster(["RUNNING", "SUCCEEDED"], [[LOG]], log=ClusterError("one bad byte")))
    assert shown == LINES


def test_a_rest_without_newline_is_shown_when_the_whole_log_cannot_be_had(fake_cluster, watch):
    shown, _ = watch(fake_cluster(["RUNNING", "SUCCEEDED"], [["one\ntwo"]], log=DOWN))
    assert shown == ["one", "two"]


def test_the_whole_log_is_asked_for_again_when_the_cluster_does_not_answer_at_once(fake_cluster, watch):
    shown, _ = watch(fake_cluster(["RUNNING", "SUCCEEDED"], [["one\n"]], log=[DOWN, LOG]))
    assert shown == LINES


def test_a_log_that_cannot_be_had_does_not_change_the_end(fake_cluster, watch):
    _, info = watch(fake_cluster(["RUNNING", "SUCCEEDED"], log=ClusterError("one bad byte")))
    assert info.status == "SUCCEEDED"


def test_a_job_that_ends_before_it_was_seen_running_shows_its_log(fake_cluster, watch):
    shown, _ = watch(fake_cluster(["PENDING", "SUCCEEDED"], log=LOG))
    assert shown == LINES


def test_no_stream_is_opened_before_the_job_runs(fake_cluster, watch):
    cluster = fake_cluster(["PENDING", "PENDING", "PENDING", "FAILED"], log=LOG)
    watch(cluster)
    assert cluster.num_tails == 0


def test_every_status_is_told_once(fake_cluster, watch):
    told = []
    cluster = fake_cluster(["PENDING", "PENDING", "RUNNING", "RUNNING", "SUCCEEDED"], [[LOG]], log=LOG)
    watch(cluster, on_status=lambda info: told.append(info.status))
    assert told == ["PENDING", "RUNNING", "SUCCEEDED"]


def test_a_cluster_that_answers_again_in_time_is_not_lost(fake_cluster, watch):
    shown, info = watch(fake_cluster(["PENDING", DOWN, DOWN, "RUNNING", DOWN, DOWN, "SUCCEEDED"], [[LOG]], log=LOG))
    assert (shown, info.status) == (LINES, "SUCCEEDED")


def test_a_server_error_while_the_job_runs_is_not_its_end(fake_cluster, watch):
    hiccup = ClusterError("http://head:8265 refused (job-1): Request failed with status code 500: GCS is not there")
    _, info = watch(fake_cluster(["RUNNING", hiccup, "RUNNING", "SUCCEEDED"], [[LOG]], log=LOG))
    assert info.status == "SUCCEEDED"


def test_a_status_that_goes_back_and_comes_again_is_followed(fake_cluster, watch):
    shown, _ = watch(fake_cluster(["RUNNING", "PENDING", "RUNNING", "SUCCEEDED"], [[LOG]], log=LOG))
    assert shown == LINES


def test_a_cluster_that_answers_no_more_is_lost_contact(fake_cluster, watch):
    with pytest.raises(LostContactError, match=r"lost contact with job-1.*rayferry logs -f job-1"):
        watch(fake_cluster(["RUNNING", DOWN]), lost_after_s=0.05)


def test_lost_contact_has_its_own_exit_code():
    assert LostContactError.exit_code == 5


class Clock:
    """The real one, and what was skipped."""

    def __init__(self):
        self.skipped_s = 0.0

    def monotonic(self):
        return time.monotonic() + self.skipped_s

    def sleep(self, seconds):
        self.skipped_s += seconds


@pytest.fixture
def skipping(fake_cluster, monkeypatch):
    """A cluster to which each question takes 50 seconds, by the clock that it comes with."""

    def make(answers):
        clock, cluster = Clock(), fake_cluster(answers)
        monkeypatch.setattr(follow_module, "time", clock)
        cluster.on_ask = lambda: clock.sleep(50)
        return clock, cluster

    return make


def test_two_minutes_without_an_answer_are_lost_contact(skipping, watch):
    clock, cluster = skipping(["RUNNING", DOWN])
    with pytest.raises(LostContactError):
        watch(cluster)
    assert clock.skipped_s == 4 * 50


def test_each_answer_begins_the_wait_for_lost_contact_anew(skipping, watch):
    _, cluster = skipping(["RUNNING", *[DOWN, DOWN, "RUNNING"] * 5, "SUCCEEDED"])
    assert watch(cluster)[1].status == "SUCCEEDED"


def test_a_job_that_the_cluster_does_not_know_ends_the_following(fake_cluster, watch):
    with pytest.raises(NoSuchJobError):
        watch(fake_cluster([NoSuchJobError("job-1")]))


def test_the_stream_is_given_up_when_contact_is_lost(fake_cluster, watch):
    cluster = fake_cluster(["RUNNING", DOWN], [["one\n"] for _ in range(3)])
    before = set(threading.enumerate())
    with pytest.raises(LostContactError):
        watch(cluster, lost_after_s=0.05)
    started = set(threading.enumerate()) - before
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


def test_a_stream_that_brings_nothing_is_made_up_for_by_the_whole_log(fake_cluster):
    streams = [[], [], ["one\n", ValueError("a bad byte")]]
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], streams, log="one\ntwo\nthr", may_end=threading.Event())
    shown = []

    def show(line):
        shown.append(line)
        if line == "two":
            cluster.log = ["one\ntwo\nthree\n"]
            cluster.may_end.set()

    follow(cluster, "job-1", show)
    assert shown == ["one", "two", "three"]


def test_lines_that_the_stream_is_late_with_are_shown_from_the_whole_log(fake_cluster, monkeypatch):
    monkeypatch.setattr(follow_module, "_WHOLE_EVERY_S", 0.01)
    log = ["one\n", "one\ntwo\nthr", DOWN, "one\ntwo\nthree\nfo", LOG]
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], [[fake_cluster.HANG]], log=log, may_end=threading.Event())
    shown = []

    def show(line):
        shown.append(line)
        if line == "four":
            cluster.may_end.set()

    follow(cluster, "job-1", show)
    assert shown == LINES


def test_the_whole_log_is_not_asked_for_beside_the_stream_once_it_is_long(fake_cluster, monkeypatch):
    monkeypatch.setattr(follow_module, "_WHOLE_EVERY_S", 0.01)
    monkeypatch.setattr(follow_module, "_MAX_WHOLE", 8)
    log = ["one\n", "one\ntwo\n", "asked for too often\n"]
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], [[fake_cluster.HANG]], log=log, may_end=threading.Event())
    before = set(threading.enumerate())
    shown = []

    def show(line):
        shown.append(line)
        cluster.log = cluster.log if line == "one" else [LOG]
        if line == "two":
            for thread in set(threading.enumerate()) - before:
                thread.join(0.1)  # the one that asks has ended, the other hangs
            cluster.may_end.set()

    follow(cluster, "job-1", show)
    assert shown == LINES


@pytest.mark.parametrize(("tail", "expected"), [(0, ["five"]), (2, ["three", "four", "five"]), (9, [*LINES, "five"])])
def test_of_what_is_there_already_the_last_lines_are_shown(fake_cluster, watch, tail, expected):
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], [[LOG, "five\n"]], log=[LOG, LOG + "five\n"])
    assert watch(cluster, tail=tail)[0] == expected


def test_a_failed_look_at_the_past_does_not_hold_up_the_following(fake_cluster, watch):
    assert watch(fake_cluster(["RUNNING", "SUCCEEDED"], [[LOG]], log=[DOWN, LOG]), tail=1)[0] == LINES


def test_a_job_over_at_its_last_moment_is_no_timeout(fake_cluster, watch):
    assert watch(fake_cluster(["SUCCEEDED"]), timeout_s=0)[1].status == "SUCCEEDED"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([("a\nb\n", 0)], ["a", "b"]),
        ([("a\nb", 0), ("a\nb\nc", 0)], ["a", "b", "c"]),
        ([("a\n", 0), ("a\n", 0)], ["a"]),
        ([("a\n", 0), ("a\na\n", 0)], ["a", "a"]),
        ([("a\n", 0), ("c\n", 4)], ["a"]),
        ([("\n\n", 0)], ["", ""]),
        ([("", 0)], []),
        ([("é\n", 0), ("é\nü", 0)], ["é", "ü"]),
        ([("a\n", 0), ("", 2), ("b\n", 2)], ["a", "b"]),
    ],
)
def test_pieces_of_a_log_become_lines(pieces, expected):
    shown = []
    lines = Lines(shown.append)
    for text, start in pieces:
        lines.feed(text, start)
    lines.close()
    assert shown == expected


def test_closing_twice_shows_the_rest_once():
    shown = []
    lines = Lines(shown.append)
    lines.feed("rest", 0)
    lines.close()
    lines.close()
    assert shown == ["rest"]


def test_only_our_lines_pass_without_their_mark():
    shown = []
    show = our_lines(shown.append)
    for line in ["INFO vllm", "[rayferry] 10:00:00 hello", " [rayferry] not ours", "[rayferry] "]:
        show(line)
    assert shown == ["10:00:00 hello", ""]


def test_of_ours_and_others_lines_the_last_of_ours_are_shown(fake_cluster, watch):
    log = "[rayferry] one\n[rayferry] two\n[rayferry] three\n" + "INFO noise\n" * 20
    cluster = fake_cluster(["RUNNING", "SUCCEEDED"], [[log]], log=log)
    assert watch(cluster, tail=2, only=our_lines)[0] == ["two", "three"]
