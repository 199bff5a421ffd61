"""The first rows of the input, read before a job starts."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.job import sample
from rayferry.submit import s3
from rayferry.submit.config import Address


def parquet(**columns):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


@pytest.fixture
def rows(probe, tmp_path):
    """The check's outcome on an input of these files."""

    def run(files, *, column=None, **changes):
        for name, content in files.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        given = {"uri": str(tmp_path / "in"), "column": column} | changes.pop("input", {})
        found = probe("rows", input=given, **changes)
        return found.outcome, found.text.replace(str(tmp_path / "in"), "IN")

    return run


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\ntwo\n"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n')),
        ("a.json", b'[{"text": "one"}, {"text": "two"}]'),
        ("a.csv", b"text\none\ntwo\n"),
        ("a.parquet", parquet(text=["one", "two"])),
    ],
)
def test_rows_of_every_format_are_read(rows, name, content):
    assert rows({name: content}) == ("ok", "IN: the first 2 rows are good")


def test_openai_batch_lines_are_read(rows):
    body = {"messages": [{"role": "user", "content": "hello"}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert rows({"a.jsonl": json.dumps(line).encode()}, task="chat") == ("ok", "IN: the first 1 row is good")


def test_no_more_than_a_few_rows_are_looked_at(rows):
    assert rows({"a.txt": b"x\n" * 1000}) == ("ok", "IN: the first 20 rows are good")


def test_files_of_few_rows_are_looked_at_together(rows):
    assert rows({f"{index}.txt": b"x\n" for index in range(9)}) == ("ok", "IN: the first 4 rows are good")


def test_one_bad_file_before_good_ones_does_not_fail_the_check(rows):
    assert rows({"a.jsonl": b"{", "b.txt": b"x"})[0] == "ok"


def test_some_bad_rows_are_told_with_the_first_of_them(rows):
    lines = b'{"text": "a"}\n{"txt": "b"}\n{"text": "c"}\n{\n'
    said = "IN: 2 of the first 4 rows are good; the first that is not: IN/a.jsonl, row 1: "
    said += "MissingColumn: no column 'text'; the row has: txt"
    assert rows({"a.jsonl": lines}) == ("ok", said)


def test_rows_that_are_all_bad_are_refused_with_the_first_error(rows):
    said = "IN: none of the first 2 rows are good; IN/a.jsonl, row 0: MissingColumn: no column 'prmpt'; "
    said += "the row has: text; check input.format, input.column and input.template, "
    said += "or go on without this check: --skip rows"
    assert rows({"a.jsonl": b'{"text": "a"}\n{"text": "b"}\n'}, column="prmpt") == ("failed", said)


def test_a_template_that_fails_on_every_row_is_refused(rows):
    outcome, text = rows({"a.jsonl": b'{"text": "a"}\n'}, input={"template": "{{ txt }}"})
    assert (outcome, "UndefinedError: 'txt' is undefined" in text) == ("failed", True)


def test_rows_that_are_all_bad_pass_where_the_job_allows_it(rows):
    assert rows({"a.jsonl": b'{"txt": "a"}\n'}, on_error={"max_error_rate": 1})[0] == "ok"


def test_an_input_without_a_row_is_unknown(rows):
    said = "IN: no row in it; the job reads them all; bad ones become rows of errors/"
    assert rows({"a.txt": b"\n\n"}) == ("unknown", said)


def test_an_input_that_is_not_there_is_left_to_its_own_check(rows):
    outcome, text = rows({})
    assert (outcome, text.partition(";")[0]) == (
        "unknown",
        "IN: its rows were not read, as its files could not be listed",
    )


def test_an_input_on_the_clusters_nodes_is_unknown(probe, tmp_path):
    found = probe("rows", address=Address("http://head:8265", "test"))
    assert (found.outcome, "its rows were not read, as its files could not be listed" in found.text) == (
        "unknown",
        True,
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b'[{"text": "' + b"x" * 3000 + b'"}]'), ("a.parquet", parquet(text=[str(x) * 9 for x in range(999)]))],
)
def test_rows_that_take_too_much_to_read_are_unknown(rows, monkeypatch, name, content):
    monkeypatch.setattr(sample, "_MAX_BYTES", 2000)
    outcome, text = rows({name: content})
    assert (outcome, "its rows, as the first take more than" in text) == ("unknown", True)


def test_rows_that_were_read_before_it_was_too_much_are_told(rows, monkeypatch):
    monkeypatch.setattr(sample, "_MAX_BYTES", 2000)
    assert rows({"a.txt": b"x", "b.txt": b"x" * 3000}) == ("ok", "IN: the first 1 row is good")


def test_a_file_that_may_not_be_read_is_unknown(rows, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sample._Metered, "read", refuse)
    outcome, text = rows({"a.txt": b"x"})
    assert (outcome, "its rows cannot be read from here ([Errno 13] Permission denied)" in text) == ("unknown", True)


def test_no_part_of_a_file_is_read_twice(rows, monkeypatch):
    content = b"x\n" * 500
    monkeypatch.setattr(sample, "_MAX_BYTES", 2 * len(content))  # its head, which decides the format, and its rows
    assert rows({"a.txt": content})[0] == "ok"


@pytest.mark.parametrize("uri", ["in", "in/", "in/*.txt", "in/a.txt"])
def test_rows_on_s3_are_read(bucket_uri, probe, uri):
    s3.write_bytes(f"{bucket_uri}/in/a.txt", b"one\ntwo\n")
    found = probe("rows", input={"uri": f"{bucket_uri}/{uri}"})
    assert (found.outcome, found.text) == ("ok", f"{bucket_uri}/{uri}: the first 2 rows are good")


def test_a_bad_row_on_s3_is_told_with_its_uri(bucket_uri, probe):
    s3.write_bytes(f"{bucket_uri}/in/a.jsonl", b"{")
    found = probe("rows", input={"uri": f"{bucket_uri}/in/"})
    assert (found.outcome, f"{bucket_uri}/in/a.jsonl, row 0: " in found.text) == ("failed", True)


def test_without_credentials_here_nothing_is_said_of_the_rows(bucket_uri, probe, other_account):
    other_account(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    found = probe("rows", input={"uri": bucket_uri})
    assert (found.outcome, "bad ones become rows of errors/" in found.text) == ("unknown", True)
