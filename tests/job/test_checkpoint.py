import json
import random

import numpy as np
import pyarrow as pa
import pytest

from rayferry.job import checkpoint, storage
from rayferry.job.checkpoint import Record, Spans, spans_of
from rayferry.job.errors import JobError
from rayferry.job.layout import Layout
from rayferry.job.storage import File

FILES = [File("/in/a.txt", 10, "a.txt", 5), File("/in/b.txt", 20, "b.txt", 6)]
SETTINGS = {"model": "m", "sampling": {"temperature": 0.5}, "input": {"template": None}}


def table(*rows):
    return pa.table({"source_uri": [uri for uri, _ in rows], "position": pa.array([at for _, at in rows], pa.int64())})


def test_rows_that_follow_each_other_are_one_span():
    rows = [("s3://b/x", at) for at in (3, 0, 1, 2, 7)] + [("s3://b/y", 5)]
    assert spans_of(table(*rows)) == {"s3://b/x": [[0, 4], [7, 8]], "s3://b/y": [[5, 6]]}


def test_no_rows_are_no_spans():
    assert spans_of(table()) == {}


@pytest.mark.parametrize("seed", range(20))
def test_spans_hold_exactly_the_positions_they_were_made_of(seed):
    drawn = random.Random(seed)
    chosen = sorted(drawn.sample(range(200), drawn.randint(0, 200)))
    spans = Spans(spans_of(table(*(("x", at) for at in chosen))).get("x", []))
    assert (np.flatnonzero(spans.contain(range(-5, 210))) - 5).tolist() == chosen
    assert len(spans) == len(chosen)
    for start in range(-3, 203, 7):
        for stop in range(start + 1, 205, 11):
            assert spans.cover(start, stop) == all(at in chosen for at in range(start, stop))


def test_a_row_that_is_done_twice_is_refused():
    with pytest.raises(JobError, match=r"done twice.*--overwrite"):
        Spans([[0, 5], [4, 6]])


@pytest.fixture
def layout(tmp_path):
    return Layout(str(tmp_path / "out"))


@pytest.fixture
def attempt(layout):
    """Begins an attempt as the pipeline does; gives what is done."""

    def begin(submission_id, settings=SETTINGS, files=FILES, resume=None, *, overwrite=False):
        before = checkpoint.check_output(layout, resume=resume, overwrite=overwrite)
        asked = checkpoint.asked(settings, files)
        return checkpoint.begin(layout, submission_id, before, asked, new_files=resume == "new-input")

    return begin


def write_part(layout, submission_id, task, rows, *, with_record=True):
    name = f"{checkpoint.part_name(submission_id, task)}.parquet"
    storage.write_bytes(layout.data_uri + name, b"x")
    if with_record:
        record = Record([{"uri": layout.data_uri + name, "num_generated_tokens": 1}], rows)
        uri = checkpoint.record_uri(layout, submission_id, task)
        storage.write_bytes(uri, json.dumps(record.to_json()).encode())
    return name


def test_a_run_that_begins_has_nothing_done(attempt):
    assert attempt("run-1") == checkpoint.Done(attempts=["run-1"])


def test_a_resumed_run_knows_the_rows_of_every_record(attempt, layout):
    attempt("run-1")
    write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]]})
    write_part(layout, "run-1", 1, {"/in/a.txt": [[3, 4]], "/in/b.txt": [[1, 2]]})
    write_part(layout, "run-1", 2, {}, with_record=False)
    done = attempt("run-1-a2", resume="same")
    assert {path: len(spans) for path, spans in done.spans.items()} == {"/in/a.txt": 4, "/in/b.txt": 1}
    assert (len(done.parts), done.attempts) == (2, ["run-1", "run-1-a2"])


def test_a_file_is_done_if_as_many_rows_are_done_as_it_has(attempt, layout):
    attempt("run-1")
    write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]], "/in/b.txt": [[0, 3]]})
    checkpoint.save_files(layout, "run-1", {"/in/a.txt": 3, "/in/b.txt": 4})
    done = attempt("run-2", resume="same")
    assert [done.whole(file) for file in FILES] == [True, False]


def test_a_used_output_is_refused_with_the_ways_on(attempt, layout):
    attempt("run-1")
    write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]]})
    with pytest.raises(JobError, match=r"an unfinished run \(run-1\); go on with --resume, or .*--overwrite"):
        attempt("run-2")


def test_a_finished_run_is_told_as_one(attempt, layout):
    attempt("run-1")
    storage.write_bytes(layout.manifest_uri, b"{}")
    with pytest.raises(JobError, match="a finished run"):
        attempt("run-2")


def test_a_finished_run_that_is_resumed_gives_its_manifest(attempt, layout):
    attempt("run-1")
    storage.write_bytes(layout.manifest_uri, b'{"a": 1}')
    assert attempt("run-2", resume="same").manifest == {"a": 1}


def test_an_output_of_somebody_else_cannot_be_resumed(attempt, layout):
    storage.write_bytes(layout.data_uri + "x.parquet", b"x")
    with pytest.raises(JobError, match="no run that can be resumed"):
        attempt("run-1", resume="same")


def test_a_run_that_left_nothing_is_resumed_from_the_start(attempt):
    assert attempt("run-1", resume="same") == checkpoint.Done(attempts=["run-1"])


def test_overwriting_leaves_nothing_of_the_earlier_run(attempt, layout):
    attempt("run-1")
    name = write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]]})
    storage.write_bytes(layout.manifest_uri, b"{}")
    assert attempt("run-2", overwrite=True) == checkpoint.Done(attempts=["run-2"])
    assert name not in storage.children(layout.data_uri)
    assert attempt("run-3", resume="same").attempts == ["run-2", "run-3"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "n"}, 'model: "m" -> "n"'),
        ({"sampling": {"temperature": 0.7}}, "sampling.temperature: 0.5 -> 0.7"),
        ({"input": {"template": "{{ x }}"}}, 'input.template: null -> "{{ x }}"'),
        ({"chat": {"system_prompt": "s"}}, 'chat: null -> {"system_prompt": "s"}'),
    ],
)
def test_another_job_file_is_refused_with_what_differs(attempt, changes, told):
    attempt("run-1")
    with pytest.raises(JobError) as raised:
        attempt("run-2", SETTINGS | changes, resume="same")
    assert told in str(raised.value)


A, B = FILES
CHANGED = File(A.path, A.num_bytes, A.label, 7)
NEW = File("/in/c.txt", 1, "c.txt", 1)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([CHANGED, B], r"1 file changed, such as /in/a.txt\); start anew"),
        ([A], r"1 file gone, such as /in/b.txt\); start anew"),
        ([A, B, NEW], r"1 file new, such as /in/c.txt\); answer them too with --resume --new-input"),
        ([CHANGED, NEW], r"1 file gone, .*1 file changed.*1 file new, such as /in/c.txt\); start anew"),
    ],
)
def test_another_input_is_refused_with_what_differs(attempt, files, told):
    attempt("run-1")
    with pytest.raises(JobError, match=told):
        attempt("run-2", files=files, resume="same")


def test_new_files_are_taken_where_that_is_said(attempt):
    attempt("run-1")
    attempt("run-2", files=[A, B, NEW], resume="new-input")
    assert attempt("run-3", files=[A, B, NEW], resume="same").attempts == ["run-1", "run-2", "run-3"]


def test_a_changed_file_is_never_taken(attempt):
    attempt("run-1")
    with pytest.raises(JobError, match="1 file changed"):
        attempt("run-2", files=[CHANGED, B, NEW], resume="new-input")


def test_parts_that_no_record_names_are_removed(layout):
    kept = write_part(layout, "run-1", 0, {})
    write_part(layout, "run-1", 1, {}, with_record=False)
    checkpoint.remove_orphans(layout, [layout.data_uri + kept], ["run-1"])
    assert storage.children(layout.data_uri) == [kept]


def test_a_part_of_another_run_is_not_removed(layout):
    name = write_part(layout, "other", 1, {})
    with pytest.raises(JobError, match=f"holds {name}, which this run did not write"):
        checkpoint.remove_orphans(layout, [], ["run-1"])
    assert storage.children(layout.data_uri) == [name]


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"parts": []}'])
def test_a_broken_record_is_told_with_its_place(attempt, layout, content):
    attempt("run-1")
    uri = checkpoint.record_uri(layout, "run-1", 0)
    storage.write_bytes(uri, content)
    with pytest.raises(JobError, match=uri):
        attempt("run-2", resume="same")


def test_of_two_records_of_a_row_one_counts_and_the_other_goes(attempt, layout):
    attempt("run-1")
    spans = [("run-1", 0, [[0, 5]]), ("run-1", 1, [[5, 9], [20, 30]]), ("run-2", 0, [[8, 12]]), ("run-2", 1, [[5, 9]])]
    for run, task, rows in spans:
        write_part(layout, run, task, {"/in/a.txt": rows})
    done = attempt("run-3", resume="same")
    assert len(done.spans["/in/a.txt"]) == 19
    left = storage.children(layout.checkpoint_uri)
    assert left == ["run-1-000000.json", "run-1-000001.json"]


def test_a_run_that_answered_a_row_twice_gets_no_manifest(layout):
    names = [write_part(layout, "run-1", task, {"/in/a.txt": [[task, task + 2]]}) for task in range(2)]
    uris = [layout.data_uri + name for name in names]
    checkpoint.check_once(layout, uris[:1])
    with pytest.raises(JobError, match=r"run-1-000001.json.*go on with --resume"):
        checkpoint.check_once(layout, uris)
