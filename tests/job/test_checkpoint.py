import json
from contextlib import suppress
from pathlib import Path

import pytest

from rayferry.job import attempts, checkpoint, identity, storage
from rayferry.job.checkpoint import Record
from rayferry.job.earlier import Earlier
from rayferry.job.errors import JobError, TornError
from rayferry.job.layout import Layout
from rayferry.job.storage import File

FILES = [File("/in/a.txt", 10, "a.txt", "5"), File("/in/b.txt", 20, "b.txt", "6")]
WEIGHTS = [File("bucket/model/a.safetensors", 9, "a.safetensors", "7")]
SETTINGS = {"model": "m", "sampling": {"temperature": 0.5}, "input": {"template": None}}


@pytest.fixture
def layout(tmp_path):
    return Layout(str(tmp_path / "out"))


@pytest.fixture
def attempt(layout):
    """Begins an attempt as the pipeline does; gives what is done."""

    def begin(submission_id, settings=SETTINGS, files=FILES, *, weights=WEIGHTS, new_files=False, **earlier):
        before = checkpoint.check_output(layout, Earlier(**earlier))
        asked = identity.asked(settings, files) | {"weights": identity.identities(weights)}
        stays_over = False
        if before is not None:
            identity.refuse_other(layout, before["settings"], asked["settings"])
            identity.refuse_other_files(layout, "input", before["files"], asked["files"], new_files=new_files)
            identity.refuse_other_files(layout, "model", before["weights"], asked["weights"])
            stays_over = checkpoint.is_over(layout, before, asked, retry_failed=earlier.get("retry_failed", False))
        return checkpoint.begin(layout, submission_id, before, asked, stays_over=stays_over, token=earlier.get("run"))

    return begin


def write_part(layout, submission_id, task, rows, *, with_record=True):
    name = f"{attempts.part_name(submission_id, task)}.parquet"
    storage.write_bytes(layout.data_uri + name, b"x")
    if with_record:
        record = Record([{"uri": layout.data_uri + name, "num_generated_tokens": 1}], rows)
        uri = attempts.record_uri(layout, submission_id, task)
        record.write(uri)
    return name


def test_a_run_that_begins_has_nothing_done(attempt):
    assert attempt("run-1") == checkpoint.Done(attempts=["run-1"])


def test_a_resumed_run_knows_the_rows_of_every_record(attempt, layout):
    attempt("run-1")
    write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]]})
    write_part(layout, "run-1", 1, {"/in/a.txt": [[3, 4]], "/in/b.txt": [[1, 2]]})
    write_part(layout, "run-1", 2, {}, with_record=False)
    done = attempt("run-1-a2", resume=True)
    assert {path: len(spans) for path, spans in done.spans.items()} == {"/in/a.txt": 4, "/in/b.txt": 1}
    assert (len(done.parts), done.attempts) == (2, ["run-1", "run-1-a2"])


def test_an_attempt_whose_id_was_there_already_has_a_name_of_its_own(attempt, layout):
    names = [attempt("run-1", resume=True).attempts[-1]]
    write_part(layout, names[-1], 0, {"/in/a.txt": [[0, 3]]})
    names += [attempt("run-1", resume=True).attempts[-1] for _ in range(2)]
    write_part(layout, names[-1], 0, {"/in/a.txt": [[3, 4]]})
    done = attempt("run-2", resume=True)
    assert names == ["run-1", "run-1~2", "run-1~3"]
    assert attempts.jobs_of(["a", *names[:1], "b~2", *names[1:]]) == ["a", "b", "run-1"]
    assert (len(done.spans["/in/a.txt"]), len(done.parts)) == (4, 2)


def test_attempts_are_told_in_the_order_in_which_they_began(attempt):
    ids = ["run-1", "run-1-a2", "run-1-a10", "again"]
    assert [attempt(name, resume=True).attempts for name in ids] == [ids[: at + 1] for at in range(len(ids))]


@pytest.mark.parametrize("earlier", [{"resume": True}, {"later": True, "run": "run-1/x"}])
def test_a_run_of_another_version_is_refused_and_stays(attempt, layout, earlier):
    attempt("run-1", run="run-1/x")
    there = json.loads(storage.read_bytes(layout.run_uri)) | {"schema_version": 1}
    storage.write_bytes(layout.run_uri, json.dumps(there).encode())
    with pytest.raises(JobError, match="another version of Rayferry"):
        attempt("run-2", **earlier)
    assert json.loads(storage.read_bytes(layout.run_uri)) == there


def test_a_file_is_done_if_as_many_rows_are_done_as_it_has(attempt, layout):
    attempt("run-1")
    write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]], "/in/b.txt": [[0, 3]]})
    checkpoint.save_files(layout, "run-1", {"/in/a.txt": 3, "/in/b.txt": 4})
    done = attempt("run-2", resume=True)
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
    storage.write_bytes(layout.manifest_uri, b'{"parts": []}')
    assert attempt("run-2", resume=True).manifest == {"parts": []}


def test_an_output_of_somebody_else_cannot_be_resumed(attempt, layout):
    storage.write_bytes(layout.data_uri + "x.parquet", b"x")
    with pytest.raises(JobError, match="no run that can be resumed"):
        attempt("run-1", resume=True)


def test_a_run_that_left_nothing_is_resumed_from_the_start(attempt):
    assert attempt("run-1", resume=True) == checkpoint.Done(attempts=["run-1"])


def test_overwriting_leaves_nothing_of_the_earlier_run(attempt, layout):
    attempt("run-1")
    name = write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]]})
    storage.write_bytes(layout.manifest_uri, b"{}")
    assert attempt("run-1", overwrite=True) == checkpoint.Done(attempts=["run-1~2"], overwritten=["run-1"])
    assert attempt("run-2", overwrite=True) == checkpoint.Done(attempts=["run-2"], overwritten=["run-1", "run-1~2"])
    assert name not in storage.children(layout.data_uri)
    late = write_part(layout, "run-1", 1, {"/in/a.txt": [[0, 3]]})  # by a worker that outlived it
    done = attempt("run-3", resume=True)
    assert (done.attempts, done.overwritten, done.records) == (["run-2", "run-3"], ["run-1", "run-1~2"], {})
    checkpoint.remove_orphans(layout, [], done.attempts + done.overwritten)
    assert late not in storage.children(layout.data_uri)


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
        attempt("run-2", SETTINGS | changes, resume=True)
    assert told in str(raised.value)


A, B = FILES
CHANGED = File(A.path, A.num_bytes, A.label, "7")
NEW = File("/in/c.txt", 1, "c.txt", "1")


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
        attempt("run-2", files=files, resume=True)


def test_new_files_are_taken_where_that_is_said(attempt):
    attempt("run-1")
    attempt("run-2", files=[A, B, NEW], resume=True, new_files=True)
    assert attempt("run-3", files=[A, B, NEW], resume=True).attempts == ["run-1", "run-2", "run-3"]


def test_a_run_that_is_over_is_so_no_more_when_new_files_are_taken(attempt, layout):
    attempt("run-1")
    storage.write_bytes(layout.manifest_uri, b'{"parts": []}')
    assert attempt("run-2", files=[A, B, NEW], resume=True, new_files=True).manifest is None
    assert storage.read_bytes(layout.manifest_uri) is None


def test_a_changed_file_is_never_taken(attempt):
    attempt("run-1")
    with pytest.raises(JobError, match="1 file changed"):
        attempt("run-2", files=[CHANGED, B, NEW], resume=True, new_files=True)


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
    uri = attempts.record_uri(layout, "run-1", 0)
    storage.write_bytes(uri, content)
    with pytest.raises(JobError, match=uri):
        attempt("run-2", resume=True)


def test_of_two_records_of_a_row_one_counts_and_the_other_goes(attempt, layout):
    attempt("run-1")
    spans = [("run-1", 0, [[0, 5]]), ("run-1", 1, [[5, 9], [20, 30]]), ("run-2", 0, [[8, 12]]), ("run-2", 1, [[5, 9]])]
    attempt("run-2", resume=True)
    for run, task, rows in spans:
        write_part(layout, run, task, {"/in/a.txt": rows})
    done = attempt("run-3", resume=True)
    assert len(done.spans["/in/a.txt"]) == 19
    left = storage.children(layout.checkpoint_uri)
    assert left == ["run-1-000000.json", "run-1-000001.json"]


def test_a_record_whose_part_is_not_there_is_of_rows_to_be_answered_again(attempt, layout):
    attempt("run-1")
    names = [write_part(layout, "run-1", task, {"/in/a.txt": [[task * 3, task * 3 + 3]]}) for task in range(2)]
    storage.remove(layout.data_uri + names[0])
    done = attempt("run-2", resume=True)
    assert len(done.spans["/in/a.txt"]) == 3
    assert storage.children(layout.checkpoint_uri) == ["run-1-000001.json"]


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ({}, 1),
        ({"retry_failed": True}, 0),
        ({"new_files": True, "files": [*FILES, File("/in/c.txt", 1, "c.txt", "1")]}, 0),
    ],
    ids=["resume", "retry failed", "new input"],
)
def test_a_run_that_is_over_and_is_to_go_on_answers_the_rows_of_a_part_that_is_gone(attempt, layout, told, left):
    attempt("run-1")
    name = write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]]})
    manifest = {"counts": {"failed": 1}, "parts": [{"uri": layout.data_uri + name}]}
    storage.write_bytes(layout.manifest_uri, json.dumps(manifest).encode())
    storage.remove(layout.data_uri + name)
    done = attempt("run-2", resume=True, **told)
    assert (len(done.records), done.manifest is None) == (left, not left)


@pytest.mark.parametrize(
    ("num_rows", "read", "expected"),
    [
        pytest.param(300, {}, 276, id="the estimate"),
        pytest.param(30, {}, 8, id="a tenth of a file that has more than was thought"),
        pytest.param(300, {"/in/a.txt": 10}, 186, id="exactly, of a file that was read to its end"),
        pytest.param(3, {"/in/a.txt": 6, "/in/b.txt": 20}, 2, id="as few as there are"),
    ],
)
def test_how_many_rows_are_left_is_known_by_file(num_rows, read, expected):
    rows = {"/in/a.txt": [[0, 4]], "/in/b.txt": [[0, 20]]}
    done = checkpoint.Done(records={"r": Record([], rows)}, num_rows=read)
    assert done.num_left(FILES, num_rows) == expected


def test_of_a_run_that_begins_all_rows_are_left():
    assert checkpoint.Done().num_left(FILES, 4000) == 4000


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([File("bucket/model/a.safetensors", 9, "a.safetensors", "8")], "1 file changed"),
        ([*WEIGHTS, File("bucket/model/b.safetensors", 9, "b.safetensors", "8")], "1 file new"),
        ([], "1 file gone"),
    ],
)
@pytest.mark.parametrize("new_files", [False, True], ids=["resume", "new input"])
def test_a_run_whose_weights_changed_is_not_gone_on_with(attempt, weights, told, new_files):
    attempt("run-1")
    with pytest.raises(JobError, match=rf"the model is not what .* \({told}, such as bucket/model/.*--overwrite"):
        attempt("run-2", resume=True, weights=weights, new_files=new_files)


def test_a_record_that_lost_its_part_to_another_of_its_rows_does_not_oust_that_one(attempt, layout):
    attempt("run-1")
    attempt("run-2", resume=True)
    lost = write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 5]]})
    kept = write_part(layout, "run-2", 0, {"/in/a.txt": [[0, 5]]})
    checkpoint.remove_orphans(layout, [layout.data_uri + kept], ["run-1", "run-2"])  # and killed right after
    done = attempt("run-3", resume=True)
    assert lost not in storage.children(layout.data_uri)
    assert list(done.records) == [attempts.record_uri(layout, "run-2", 0)]


def test_what_a_killed_process_was_writing_is_neither_a_part_nor_a_record(attempt, layout):
    attempt("run-1")
    name = write_part(layout, "run-1", 0, {"/in/a.txt": [[0, 3]]})
    for folder, draft in ((layout.data_uri, f".{name}.77"), (layout.checkpoint_uri, ".run-1-000001.json.77")):
        Path(folder, draft).write_bytes(b"{")
    done = attempt("run-2", resume=True)
    checkpoint.remove_orphans(layout, [layout.data_uri + name], done.attempts)
    assert len(done.records) == 1


@pytest.mark.parametrize("files", [FILES, [A, B, NEW]], ids=["same", "new input"])
def test_of_a_run_that_is_over_the_manifest_says_which_records_count(attempt, layout, files):
    attempt("run-1")
    name = write_part(layout, "run-1", 0, {"/in/a.txt": [[4, 9]]})
    storage.write_bytes(layout.manifest_uri, json.dumps({"parts": [{"uri": layout.data_uri + name}]}).encode())
    write_part(layout, "run-0", 7, {"/in/a.txt": [[0, 5]]})  # by a worker that outlived its attempt
    done = attempt("run-2", files=files, resume=True, new_files=True)
    assert list(done.records) == [attempts.record_uri(layout, "run-1", 0)]
    assert storage.children(layout.checkpoint_uri) == ["run-1-000000.json"]


def test_a_run_that_answered_a_row_twice_gets_no_manifest():
    records = {f"x/{task}.json": Record([], {"/in/a.txt": [[task, task + 2]]}) for task in range(2)}
    checkpoint.check_once({"x/0.json": records["x/0.json"]})
    with pytest.raises(TornError, match=r"x/1.json.*go on with --resume"):
        checkpoint.check_once(records)


def test_a_record_without_content_is_none(tmp_path):
    (tmp_path / "r.json").touch()
    assert checkpoint.Record.read(str(tmp_path / "r.json")) is None


@pytest.mark.parametrize("told", [{}, {"overwrite": True}, {"resume": True, "new_input": True}], ids=str)
@pytest.mark.parametrize("begun_by", ["run", "run-a2"])
def test_a_later_attempt_goes_on_with_what_its_run_began(attempt, layout, told, begun_by):
    attempt(begun_by, run="run/1")
    write_part(layout, begun_by, 0, {"b/a": [[0, 1]]})
    assert attempt("run-a3", run="run/1", later=True, **told).attempts == [begun_by, "run-a3"]


def test_a_later_attempt_does_what_the_first_was_told_where_none_began(attempt, layout):
    attempt("run", run="run/yesterday")  # of the same id
    write_part(layout, "run", 0, {"b/a": [[0, 1]]})
    with pytest.raises(JobError, match=r"holds an unfinished run \(run\)"):
        attempt("run-a2", run="run/1", later=True)
    assert attempt("run-a2", run="run/1", later=True, resume=True).attempts == ["run", "run-a2"]
    anew = attempt("run-a3", SETTINGS | {"model": "other"}, run="run/1", later=True, overwrite=True)
    assert anew.attempts == ["run-a3"]


@pytest.mark.parametrize("known", ["", "old/1"])
def test_a_later_attempt_does_not_overwrite_a_run_that_came_since_it_was_told_to(attempt, layout, known):
    attempt("other", run="other/1")
    with pytest.raises(JobError, match=r"holds other/1, which began after .* submit it again with --overwrite"):
        attempt("run-a2", run="run/1", later=True, overwrite=True, instead=known)
    storage.remove(layout.run_uri)
    assert attempt("run-a2", run="run/1", later=True, overwrite=True, instead=known).attempts == ["run-a2"]


@pytest.mark.parametrize("known", [None, "old/1"])
def test_a_later_attempt_overwrites_the_run_that_it_was_told_to(attempt, known):
    attempt("old", run="old/1")
    again = attempt("run-a2", SETTINGS | {"model": "other"}, run="run/1", later=True, overwrite=True, instead=known)
    assert again.attempts == ["run-a2"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": null}'], ids=str)
def test_a_later_attempt_overwrites_what_is_no_state(attempt, layout, content):
    storage.write_bytes(layout.run_uri, content)
    assert attempt("run-a2", run="run/1", later=True, overwrite=True).attempts == ["run-a2"]


@pytest.mark.parametrize("num_removed", range(7))
def test_what_a_cut_off_overwriting_leaves_is_no_run_to_go_on_with(attempt, layout, monkeypatch, num_removed):
    attempt("old")
    part = write_part(layout, "old", 0, {"b/a": [[0, 1]]})
    storage.write_bytes(layout.spec_uri, b"{}")
    storage.write_bytes(layout.manifest_uri, json.dumps({"parts": [{"uri": layout.data_uri + part}]}).encode())
    removed, remove = [], storage.remove

    def once(uri):
        if len(removed) == num_removed:
            raise KeyboardInterrupt
        removed.append(uri)
        remove(uri)

    monkeypatch.setattr(storage, "remove", once)
    with suppress(KeyboardInterrupt):
        attempt("new", overwrite=True, run="new/1")
    monkeypatch.setattr(storage, "remove", remove)
    assert bool(num_removed) == (layout.manifest_uri in removed)
    with suppress(JobError):  # refused: nothing is taken for done
        done = attempt("again", resume=True)
        assert len(done.records) == len(storage.children(layout.data_uri))
