import io
import subprocess
import sys
import zipfile

import pytest

from rayferry.job.errors import RayferryError, SpecError
from rayferry.submit.config import Address
from rayferry.submit.schedule import remote
from rayferry.submit.schedule.book import Book

STORE = "s3://bucket/schedules/"


class InMemory:
    """A store that says it is in S3."""

    uri = STORE

    def __init__(self):
        self.objects = {}

    def get(self, key):
        return (self.objects[key], "tag") if key in self.objects else None

    def put(self, key, content, tag):
        self.objects[key] = content
        return "tag"


def test_a_store_has_one_scheduler_whoever_starts_it():
    one, other = remote.build(STORE, "http://a:8265"), remote.build(STORE, "http://a:8265")
    assert one == other
    assert one.submission_id == remote.scheduler_id(STORE) != remote.scheduler_id("s3://bucket/other/")
    assert one.entrypoint == f"python -m rayferry.submit schedule run --store {STORE} --inside"
    assert "--allow-commands" in remote.build(STORE, "http://a:8265", allow_commands=True).entrypoint


def test_what_travels_runs_without_anything_of_this_installation(tmp_path):
    with zipfile.ZipFile(io.BytesIO(remote.build(STORE, "http://a:8265").content)) as archive:
        archive.extractall(tmp_path)
    assert {path.name for path in (tmp_path / "carried").iterdir()} == {"click", "cronsim", "jinja2", "markupsafe"}
    # -I: no PYTHONPATH; -S: none of what is installed
    code = "import sys; sys.path.insert(0, '.'); import rayferry.submit.__main__ as m; m.main(['schedule', '--help'])"
    words = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unpause" in done.stdout


def test_a_scheduler_is_started_found_and_started_again_when_it_is_dead(ray_api):
    book, address = Book(InMemory()), Address(ray_api.url, "test")
    name = remote.scheduler_id(STORE)
    ray_api.statuses = ["RUNNING"]
    assert remote.state(book) is None
    assert remote.keep(book, address) == (name, True)
    assert remote.keep(book, address) == (name, False)
    assert remote.state(book) == {"address": ray_api.url, "submission_id": name, "status": "RUNNING"}
    ray_api.jobs[name]["status"] = "FAILED"
    assert remote.state(book)["status"] == "FAILED"
    assert remote.keep(book, address) == (name, True)
    assert remote.state(book)["status"] == "RUNNING"
    del ray_api.jobs[name]
    assert remote.state(book)["status"] == "GONE"


def test_a_folder_is_no_store_for_a_cluster(book):
    with pytest.raises(SpecError, match="the cluster does not see"):
        remote.keep(book, Address("http://a:8265", "test"))


def test_a_store_has_one_scheduler_on_all_clusters(serve_ray, capsys):
    book, one, other = Book(InMemory()), serve_ray(), serve_ray()
    one.statuses = ["RUNNING"]
    remote.keep(book, Address(one.url, "test"))
    with pytest.raises(RayferryError, match=f"runs on {one.url}; stop it there first"):
        remote.keep(book, Address(other.url, "test"))
    assert other.jobs == {}
    remote.keep(book, Address(one.url, "test"))
    assert "--allow-commands" not in capsys.readouterr().err
    remote.keep(book, Address(one.url, "test"), allow_commands=True)
    assert "another --allow-commands" in capsys.readouterr().err
