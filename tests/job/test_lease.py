import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayferry.job import lease as lease_module
from rayferry.job import storage
from rayferry.job.errors import JobError
from rayferry.job.lease import Lease


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(lease_module, "TTL_S", 1.5)
    monkeypatch.setattr(lease_module, "_RENEW_S", 0.2)
    monkeypatch.setattr(lease_module, "_POLL_S", 0.1)


@pytest.fixture(params=["s3", "disk"])
def uri(request, tmp_path):
    root = request.getfixturevalue("bucket_uri") if request.param == "s3" else str(tmp_path / "out")
    return f"{root}/_meta/lease.json"


def test_a_lease_is_there_while_it_is_held(uri):
    with Lease(uri, "run-1"):
        assert storage.read_bytes(uri) is not None
    assert storage.read_bytes(uri) is None


def test_a_second_one_is_told_who_holds_it(uri):
    with Lease(uri, "run-1"), pytest.raises(JobError, match=r"^run-1 is writing to this output .*logs -f run-1"):
        Lease(uri, "run-2").__enter__()


def test_a_second_one_of_the_same_name_is_another_one(uri):
    with Lease(uri, "run-1"), pytest.raises(JobError, match="run-1 is writing"):
        Lease(uri, "run-1").__enter__()


def test_whose_put_was_carried_out_though_its_answer_was_lost_has_it(uri):
    first = Lease(uri, "run-1")
    with first:
        assert first._take()


def test_a_lease_that_was_given_back_can_be_taken(uri):
    with Lease(uri, "run-1"):
        pass
    with Lease(uri, "run-2"):
        pass


def test_without_boto3_there_is_no_lease(bucket_uri, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "boto3", None)
    storage._by_boto3.cache_clear()
    with Lease(f"{bucket_uri}/_meta/lease.json", "run-1"), Lease(f"{bucket_uri}/_meta/lease.json", "run-2"):
        assert "no boto3: nothing keeps two runs" in capsys.readouterr().out


DIES = """
import os, sys
from rayferry.job import lease
lease.TTL_S = 1.5
lease.Lease(sys.argv[1], "dead").__enter__()
os._exit(1)
"""


def test_a_lease_whose_holder_died_expires(uri, hasty):
    subprocess.run([sys.executable, "-c", DIES, uri], check=False)
    start = time.monotonic()
    with Lease(uri, "run-2", patient_with=lambda holder: holder == "dead"):
        assert time.monotonic() - start < 30


def test_a_lease_of_one_that_is_over_is_taken_once_it_was_not_renewed_in_time(uri, monkeypatch):
    monkeypatch.setattr(lease_module, "_RENEW_S", 1.0)
    subprocess.run([sys.executable, "-c", DIES, uri], check=False)
    start = time.monotonic()
    with Lease(uri, "run-2", over=["dead"]):
        assert time.monotonic() - start < lease_module.TTL_S / 2


def test_a_lease_of_one_that_lives_is_not_taken_though_one_of_its_name_is_over(uri, hasty):
    with Lease(uri, "run-1"), pytest.raises(JobError, match="run-1 is writing"):
        Lease(uri, "run-2", over=["run-1"]).__enter__()


def test_who_saw_a_lease_before_it_was_renewed_may_not_put_on_it(uri, hasty):
    with Lease(uri, "run-1") as held:
        _, seen, _ = held._store.get()
        time.sleep(1)
        assert held._store.put(b"{}", seen) is None


def test_a_lease_that_is_renewed_does_not_expire(uri, hasty):
    with Lease(uri, "run-1"), pytest.raises(JobError, match="run-1 is writing"):
        Lease(uri, "run-2", patient_with=lambda _holder: True).__enter__()


LOSES = """
import sys, time
from rayferry.job import lease, storage
lease._RENEW_S = 0.2
with lease.Lease(sys.argv[1], "run-1"):
    storage.write_bytes(sys.argv[1], b'{"submission_id": "run-2"}')
    time.sleep(20)
"""


def test_who_lost_it_ends(uri):
    ended = subprocess.run([sys.executable, "-c", LOSES, uri], check=False, capture_output=True, text=True, timeout=200)
    assert (ended.returncode, "run-2 has taken this output over" in ended.stdout) == (1, True)


def test_of_many_at_once_one_gets_it(uri):
    def take(name):
        try:
            Lease(uri, name).__enter__()
        except JobError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(take, [f"run-{at}" for at in range(8)])) == 1


class Failing:
    """A store whose puts' answers are lost, and that says nothing else either; it comes back after three questions."""

    def __init__(self, real):
        self.real, self.left, self.renewed = real, 3, threading.Event()

    def put(self, content, tag):
        if self.left:
            return None
        found = self.real.put(content, tag)
        self.renewed.set()
        return found

    def get(self):
        if self.left:
            self.left -= 1
            raise JobError("away")
        return self.real.get()

    def remove(self):
        self.real.remove()


def test_it_is_renewed_after_a_time_without_the_store(uri, hasty):
    with Lease(uri, "run-1") as lease:
        lease._store = Failing(lease._store)
        assert lease._store.renewed.wait(30)


def test_who_lost_it_does_not_remove_the_other_ones(uri):
    with Lease(uri, "run-1"):
        storage.write_bytes(uri, b'{"submission_id": "run-2"}')
    assert storage.read_bytes(uri) is not None
