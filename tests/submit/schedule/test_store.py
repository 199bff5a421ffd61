import json
import os
import threading
from datetime import timedelta

import pytest

from rayferry.job.errors import SpecError
from rayferry.submit import s3
from rayferry.submit.schedule.book import Book, CorruptError
from rayferry.submit.schedule.records import Firing, Progress, key_of
from rayferry.submit.schedule.store import open_store

from .conftest import START


def test_an_object_is_made_once_and_changed_only_by_who_knows_it(each_store):
    tag = each_store.put("a/b.json", b"1", None)
    assert each_store.put("a/b.json", b"2", None) is None
    assert each_store.put("a/b.json", b"2", "other") is None
    newer = each_store.put("a/b.json", b"2", tag)
    assert each_store.put("a/b.json", b"3", tag) is None
    assert each_store.get("a/b.json") == (b"2", newer)


def test_a_write_whose_answer_was_lost_is_known_as_ones_own(each_store):
    tag = each_store.put("a/b.json", b"mine", None)
    assert each_store.put("a/b.json", b"mine", None) == tag


def test_what_is_not_there_is_none_and_cannot_be_changed(each_store):
    assert each_store.get("a/b.json") is None
    assert each_store.put("a/b.json", b"1", "some-tag") is None
    assert list(each_store.keys("a/")) == []
    each_store.remove("a/b.json")


def test_keys_come_in_order_from_after_one_on(each_store):
    for name in ("b", "a", "c"):
        each_store.put(f"x/{name}.json", b"1", None)
    each_store.put("xy/d.json", b"1", None)
    assert list(each_store.keys("x/")) == ["x/a.json", "x/b.json", "x/c.json"]
    assert list(each_store.keys("x/", "x/a.json")) == ["x/b.json", "x/c.json"]


def test_of_many_who_make_one_object_at_once_one_does(each_store):
    won, start = [], threading.Barrier(8)

    def make(number):
        start.wait()
        if each_store.put("a/b.json", str(number).encode(), None) is not None:
            won.append(number)

    threads = [threading.Thread(target=make, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert each_store.get("a/b.json")[0] == str(won[0]).encode()


def test_a_removed_object_is_gone(each_store):
    each_store.put("a/b.json", b"1", None)
    each_store.remove("a/b.json")
    assert each_store.get("a/b.json") is None


@pytest.mark.parametrize(
    "uri", ["s3://", "s3://B_/x", "https://host/x", "/", "s3://anonymous@bucket/x", "s3://bucket/a?b"]
)
def test_what_is_no_store_is_refused(uri):
    with pytest.raises(SpecError, match="--store"):
        open_store(uri)


def test_a_store_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    store = open_store(str(tmp_path / "file"))
    assert store.get("a/b.json") is None
    with pytest.raises(s3.StorageError, match="cannot be written"):
        store.put("a/b.json", b"1", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where it likes")
def test_a_store_that_is_read_only_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(s3.StorageError, match="cannot be written"):
        open_store(str(tmp_path)).put("a/b.json", b"1", None)


def test_an_s3_that_does_not_answer_is_told(bucket_uri, other_account):
    other_account(AWS_ENDPOINT_URL="http://127.0.0.1:9")
    with pytest.raises(s3.StorageError, match="does not answer"):
        open_store(bucket_uri).put("a/b.json", b"1", None)


def test_the_book_gives_back_what_was_put(each_store, schedule):
    book = Book(each_store)
    entry = book.put_schedule(schedule(), None)
    assert book.schedule("nightly") == entry
    assert book.names() == ["nightly"]
    firing = Firing(schedule="nightly", scheduled_time="2026-03-01T12:01:00Z")
    assert book.firing("nightly", firing.tick) is None
    assert book.firing("nightly", firing.tick) != book.put_firing(firing, None)
    assert book.firing("nightly", firing.tick).value == firing
    assert book.ticks("nightly") == [firing.tick]
    assert book.ticks("nightly", firing.tick) == []
    assert book.progress("nightly").value == Progress()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 2}', b'{"schedule": 3}', b"\xff"])
@pytest.mark.parametrize("kind", ["schedule", "progress", "firing"])
def test_a_corrupt_object_is_told_by_its_place(book, kind, content):
    keys = {
        "schedule": "schedules/x.json",
        "progress": "progress/x.json",
        "firing": f"firings/x/{key_of(START + timedelta(minutes=1))}.json",
    }
    book.store.put(keys[kind], content, None)
    asked = {
        "schedule": lambda: book.schedule("x"),
        "progress": lambda: book.progress("x"),
        "firing": lambda: book.firing("x", START + timedelta(minutes=1)),
    }
    with pytest.raises(CorruptError, match=f"{keys[kind]}: not valid"):
        asked[kind]()


@pytest.mark.parametrize(
    "changes",
    [
        *({key: "soon"} for key in ("scheduled_time", "claimed_at", "next_at", "submitted_at", "ended_at")),
        {"claimed_at": "2026-02-30T00:00:00Z"},
        {"on_failure": {"state": "due", "next_at": "soon"}},
        {"on_failure": {"state": "calling", "at": ""}},
        {"scheduled_time": "2026-03-01T12:02:00Z"},
        {"schedule": "other"},
    ],
)
def test_a_firing_with_an_odd_time_or_of_another_tick_is_corrupt(book, changes):
    value = {"schedule": "x", "scheduled_time": "2026-03-01T12:01:00Z"} | changes
    book.store.put("firings/x/20260301T120100Z.json", json.dumps(value).encode(), None)
    with pytest.raises(CorruptError, match=r"firings/x/20260301T120100Z\.json: not valid"):
        book.firing("x", START + timedelta(minutes=1))


@pytest.mark.parametrize("cursor", ["soon", "20260230T000000Z", "00010101T000000Z", "2026031T120000Z"])
def test_progress_with_an_odd_cursor_is_corrupt(book, cursor):
    book.store.put("progress/x.json", json.dumps({"cursor": cursor}).encode(), None)
    with pytest.raises(CorruptError, match=r"progress/x\.json: not valid: cursor"):
        book.progress("x")


@pytest.mark.parametrize("name", ["other", "odd name"])
def test_a_copy_of_a_schedule_under_another_name_is_corrupt_and_told_how_to_remove(book, schedule, name):
    book.put_schedule(schedule(), None)
    book.store.put(f"schedules/{name}.json", book.store.get("schedules/nightly.json")[0], None)
    with pytest.raises(CorruptError, match=f"it is of 'nightly'.* rayferry schedule remove '?{name}'?$"):
        book.schedule(name)


def test_a_name_that_is_no_tick_is_told(book):
    book.store.put("firings/x/yesterday.json", b"{}", None)
    with pytest.raises(CorruptError, match=r"firings/x/yesterday.json: not the name of a firing"):
        book.ticks("x")


def test_the_scheduler_of_a_cluster_is_known_by_the_last_record(book):
    assert book.remote() is None
    book.put_remote("http://a:8265", "one")
    book.put_remote("http://b:8265", "one")
    assert book.remote() == {"address": "http://b:8265", "submission_id": "one"}
    assert json.loads(book.store.get("scheduler.json")[0])["schema_version"] == 1


def test_a_folder_that_is_gone_is_told_and_not_made_again(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert list(store.keys("a/")) == []
    store.put("a/b.json", b"1", None)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    for use in (lambda: store.get("a/b.json"), lambda: list(store.keys("a/")), lambda: store.put("a/c", b"1", None)):
        with pytest.raises(s3.StorageError, match="the store is gone"):
            use()
    assert not (tmp_path / "store").exists()


def test_a_file_in_the_place_of_a_folder_is_told_when_it_is_listed(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(s3.StorageError, match="cannot be listed: Not a directory"):
        list(open_store(str(tmp_path / "file")).keys("a/"))
