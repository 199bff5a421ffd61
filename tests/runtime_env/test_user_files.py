"""The user's own files: what travels under which name, what stays and why."""

import io
import json
import os
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rayferry.job.errors import SpecError
from rayferry.job.spec import parse
from rayferry.runtime_env.staging import stage

DATA = {"model": "m", "input": {"uri": "s3://bucket/in/"}, "output": {"uri": "s3://bucket/out/"}}
TOKEN = "hf_" + secrets.token_hex(17)


@pytest.fixture
def tree(tmp_path):
    """Makes files below a folder; gives the folder."""

    def make(files, folder="home"):
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / folder

    return make


def staged(**runtime_env):
    runtime_env = {key: [str(path) for path in paths] for key, paths in runtime_env.items()}
    return stage(parse(DATA | {"runtime_env": runtime_env}, "job.yaml"))


def archive(package):
    return zipfile.ZipFile(io.BytesIO(package.content))


def theirs(package):
    return {name for name, _ in package.files if name != "spec.json" and not name.startswith("rayferry/")}


def refused(**runtime_env):
    with pytest.raises(SpecError) as raised:
        staged(**runtime_env)
    return str(raised.value)


def test_a_job_without_files_has_none_left_out():
    assert (theirs(staged()), staged().left_out) == (set(), ())


def test_a_module_lies_at_the_top(tree):
    folder = tree({"plugin.py": "X = 1"})
    assert theirs(staged(py_modules=[folder / "plugin.py"])) == {"plugin.py"}


def test_a_package_lies_at_the_top_with_all_that_it_holds(tree):
    folder = tree({"plugin/__init__.py": "", "plugin/a/b.py": "", "plugin/data.json": "{}", "other.py": ""})
    package = staged(py_modules=[folder / "plugin"])
    assert theirs(package) == {"plugin/__init__.py", "plugin/a/b.py", "plugin/data.json"}


def test_files_and_folders_lie_under_files(tree):
    folder = tree({"a.txt": "1", "b/c/d.bin": b"\xff\0", "b/.python-version": "3"})
    package = staged(files=[folder / "a.txt", folder / "b"])
    assert theirs(package) == {"files/a.txt", "files/b/c/d.bin", "files/b/.python-version"}


def test_files_travel_as_they_are(tree):
    folder = tree({"b.bin": bytes(range(256))})
    assert archive(staged(files=[folder / "b.bin"])).read("files/b.bin") == bytes(range(256))


def test_a_module_that_travelled_can_be_imported_beside_the_job(tree, tmp_path):
    folder = tree({"plugin/__init__.py": "X = 7", "single.py": "Y = 8"})
    archive(staged(py_modules=[folder / "plugin", folder / "single.py"])).extractall(tmp_path / "there")
    program = "import plugin, single, rayferry.job as job; print(plugin.X, single.Y, job.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "there", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["7", "8", str(tmp_path / "there/rayferry/job/__init__.py")]


def test_the_spec_names_what_travels_and_none_of_the_laptops_folders(tree, tmp_path):
    folder = tree({"plugin.py": "", "b/c.txt": ""})
    told = archive(staged(py_modules=[folder / "plugin.py"], files=[folder / "b"])).read("spec.json")
    assert json.loads(told)["runtime_env"] == {"py_modules": ["plugin.py"], "files": ["files/b"]}
    assert str(tmp_path).encode() not in told


def test_the_cluster_can_read_that_spec(tree):
    folder = tree({"plugin.py": "", "b/c.txt": ""})
    told = archive(staged(py_modules=[folder / "plugin.py"], files=[folder / "b"])).read("spec.json")
    assert parse(json.loads(told), "spec.json").runtime_env.files == ["files/b"]


def test_times_modes_and_the_folders_place_do_not_matter(tree):
    files = {"b/c.txt": "1", "b/a.txt": "2", "b/d/e.txt": "3"}
    one, other = tree(files), tree(dict(reversed(files.items())), "elsewhere")
    (other / "b/c.txt").chmod(0o700)
    os.utime(other / "b/a.txt", (1e9, 1e9))
    assert staged(files=[one / "b"]).content == staged(files=[other / "b"]).content


def test_a_changed_file_changes_the_package(tree):
    before = staged(files=[tree({"b/c.txt": "1"}) / "b"]).name
    assert staged(files=[tree({"b/c.txt": "2"}) / "b"]).name != before


def test_entries_stay_in_order_of_their_names(tree):
    names = archive(staged(files=[tree({"b/z": "", "b/a": "", "b/Z": ""}) / "b"])).namelist()
    assert names == sorted(names)


def test_a_path_is_below_the_current_folder(tree, monkeypatch):
    monkeypatch.chdir(tree({"b/c.txt": "1"}))
    assert theirs(staged(files=["b", "./b/../b/c.txt"])) == {"files/b/c.txt", "files/c.txt"}


def test_the_current_folder_goes_by_its_name(tree, monkeypatch):
    monkeypatch.chdir(tree({"b/c.txt": "1"}) / "b")
    assert theirs(staged(files=["."])) == {"files/b/c.txt"}


@pytest.mark.parametrize(
    "name",
    [
        *(".env", ".env.local", ".envrc", "prod.env", ".ENV", "a.pem", "A.PEM", "tls.key", "x.p12", "x.pfx"),
        *("id_rsa", "id_rsa.pub", "id_ed25519", "id_ed25519_work", "id_ecdsa", ".netrc", "credentials"),
        *("credentials.json", "Credentials.csv", ".git-credentials", ".pypirc", ".npmrc", "terraform.tfstate"),
    ],
)
@pytest.mark.parametrize("folder", ["b", "b/deep/er"])
def test_a_secret_by_its_name_stays_and_is_told(tree, name, folder):
    package = staged(files=[tree({f"{folder}/{name}": "x", "b/a.txt": ""}) / "b"])
    assert theirs(package) == {"files/b/a.txt"}
    ((told, reason),) = package.left_out
    assert (told, "by its name" in reason) == (f"files/{folder}/{name}", True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".aws/config", "a private folder"),
        (".ssh/known_hosts", "a private folder"),
        (".git/config", "a private folder"),
        ("__pycache__/a.pyc", "compiled Python"),
        (".venv/lib/a.py", "a Python environment"),
        ("my-venv/pyvenv.cfg", "a Python environment"),
        ("node_modules/a/index.js", "installed packages"),
    ],
)
@pytest.mark.parametrize("key", ["py_modules", "files"])
def test_a_folder_that_must_not_travel_is_told_once(tree, key, name, reason):
    package = staged(**{key: [tree({f"b/{name}": "x", f"b/{name}2": "y", "b/a.py": ""}) / "b"]})
    top = "b" if key == "py_modules" else "files/b"
    assert (theirs(package), package.left_out) == ({f"{top}/a.py"}, ((f"{top}/{name.split('/')[0]}/", reason),))


def test_a_worktrees_git_file_stays(tree):
    assert staged(files=[tree({"b/.git": "gitdir: /x"}) / "b"]).left_out == (("files/b/.git", "a private file"),)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.ipynb", json.dumps({"cells": [f"login('{TOKEN}')"]}), "it holds what looks like a Hugging Face token"),
        ("a.py", f"T = '{TOKEN}'", "it holds what looks like a Hugging Face token"),
        ("a.txt", ("é" + TOKEN).encode("utf-16"), "it holds what looks like a Hugging Face token"),
        ("a.txt", b"x" * (3 << 20) + b" " + TOKEN.encode(), "it holds what looks like a Hugging Face token"),
        ("a.bin", b"\0\xff" + TOKEN.encode(), "it holds what looks like a Hugging Face token"),
        ("gcp.json", '{"private_key" : "x"}', "it holds a service account's key"),
        ("pip.conf", "index-url = https://me:pw" + "word@host/simple", "it holds what looks like an address with"),
        ("key.txt", "-----BEGIN RSA PRIVATE " + "KEY-----\nx", "it holds what looks like a private key"),
    ],
    ids=str,
)
def test_a_secret_by_what_is_in_it_stays_and_is_told(tree, name, content, reason):
    package = staged(files=[tree({f"b/{name}": content, "b/good.txt": ""}) / "b"])
    ((told, said),) = package.left_out
    assert (theirs(package), told) == ({"files/b/good.txt"}, f"files/b/{name}")
    assert (said.startswith(reason), TOKEN in said) == (True, False)


@pytest.mark.parametrize(
    "content",
    [
        "token = os.environ['HF_TOKEN']",
        "password: ${PASSWORD}",
        "f'postgres://{user}:{password}@{host}'",
        '{"private": 1}',
        b"\0://a:b@c",
        "max_tokens = 5",
    ],
)
def test_code_that_speaks_of_secrets_travels(tree, content):
    assert staged(files=[tree({"b/a.json": content}) / "b"]).left_out == ()


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside.txt", "../outside", "../../home2"])
def test_a_link_that_leads_out_stays_and_is_told(tree, tmp_path, target):
    folder = tree({"b/a.txt": "", "outside.txt": "x", "outside/c.txt": "x"})
    (tmp_path / "home2").mkdir()
    (folder / "b/link").symlink_to(target)
    package = staged(files=[folder / "b"])
    ((told, reason),) = package.left_out
    assert (theirs(package), told.rstrip("/")) == ({"files/b/a.txt"}, "files/b/link")
    assert reason == "a link that leads out of the folder"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("none", "a link to nowhere"),
        ("link", "a link to nowhere"),
        (".", "a link to a folder"),
        ("key.pem", "a link to a key, by its name"),
        (".git/config", "a link to a private folder"),
    ],
)
def test_a_link_that_is_no_other_name_of_a_file_stays(tree, target, reason):
    folder = tree({"b/a.txt": "", "b/key.pem": "x", "b/.git/config": "x"})
    (folder / "b/link").symlink_to(target)
    left_out = {name.rstrip("/"): why for name, why in staged(files=[folder / "b"]).left_out}
    assert left_out["files/b/link"] == reason


def test_a_link_to_a_file_beside_it_travels_as_that_file(tree):
    folder = tree({"b/a.txt": "content"})
    (folder / "b/link.txt").symlink_to("a.txt")
    assert archive(staged(files=[folder / "b"])).read("files/b/link.txt") == b"content"


def test_a_link_that_is_named_itself_travels_by_its_own_name(tree):
    folder = tree({"v12/a.txt": "content"})
    (folder / "current").symlink_to("v12")
    assert theirs(staged(files=[folder / "current"])) == {"files/current/a.txt"}


def test_what_is_neither_file_nor_folder_stays(tree):
    folder = tree({"b/a.txt": ""})
    os.mkfifo(folder / "b/pipe")
    assert staged(files=[folder / "b"]).left_out == (("files/b/pipe", "neither a file nor a folder"),)


def test_a_name_that_is_no_text_stays(tree):
    folder = tree({"b/a.txt": ""})
    (folder / "b" / os.fsdecode(b"\xff")).touch()
    assert staged(files=[folder / "b"]).left_out == (("files/b/?", "its name is not UTF-8 text"),)


@pytest.mark.parametrize(
    ("key", "name"), [("files", ".env"), ("files", "a.pem"), ("files", ".ssh"), ("files", ".ssh/config")]
)
def test_a_secret_that_is_named_itself_is_refused(tree, key, name):
    message = refused(**{key: [tree({".env": "", "a.pem": "", ".ssh/config": ""}) / name]})
    assert ("stays at home: " in message, "secrets go by runtime_env.secrets" in message) == (True, True)


@pytest.mark.parametrize(("key", "name"), [("files", "a.txt"), ("py_modules", "a.py")])
def test_a_file_that_is_named_itself_and_holds_a_secret_is_refused(tree, key, name):
    message = refused(**{key: [tree({name: TOKEN}) / name]})
    assert ("stays at home: it holds what looks like a Hugging Face token" in message, TOKEN in message) == (
        True,
        False,
    )


def test_a_link_to_a_secret_that_is_named_itself_is_refused(tree):
    folder = tree({".env": ""})
    (folder / "good.txt").symlink_to(".env")
    assert "an environment file, by its name" in refused(files=[folder / "good.txt"])


@pytest.mark.parametrize("key", ["py_modules", "files"])
def test_a_path_that_is_not_there_is_refused(tmp_path, key):
    assert refused(**{key: [tmp_path / "none"]}) == (
        f"runtime_env.{key}.0: '{tmp_path}/none': cannot be read: No such file or directory; "
        "paths are below the job file's folder"
    )


@pytest.mark.parametrize("path", ["/", "\0", "/dev/null"])
def test_a_path_that_is_no_file_of_ones_own_is_refused(path):
    assert "runtime_env.files.0: " in refused(files=[path])


@pytest.mark.parametrize(
    "name", ["rayferry/a.py", "Rayferry/a.py", "files/a.py", "json.py", "ray/a.py", "vllm.py", "secrets/x"]
)
def test_a_module_that_would_take_anothers_place_is_refused(tree, name):
    assert "would take the place of the module" in refused(py_modules=[tree({name: ""}) / name.split("/")[0]])


@pytest.mark.parametrize("name", ["spec.json", "a-b.py", "a.txt", "class.py", "1a/x", "a.b/x", "plain"])
def test_a_module_that_cannot_be_imported_is_refused(tree, name):
    assert "cannot be imported" in refused(py_modules=[tree({name: ""}) / name.split("/")[0]])


def test_two_of_one_name_are_refused(tree):
    folder = tree({"b/x.txt": "", "c/x.txt": "", "m/__init__.py": "", "m.py": ""})
    assert "another one is called 'x.txt'" in refused(files=[folder / "b/x.txt", folder / "c/x.txt"])
    assert "another one is called 'm.py'" in refused(py_modules=[folder / "m", folder / "m.py"])


def test_files_of_any_name_cannot_take_the_place_of_the_job(tree):
    folder = tree({"rayferry/job/__init__.py": "bad", "spec.json": "bad"})
    package = staged(files=[folder / "rayferry", folder / "spec.json"])
    assert b"bad" not in (archive(package).read("spec.json"), archive(package).read("rayferry/job/__init__.py"))


def test_too_much_is_refused_with_the_place_for_it(tree, monkeypatch):
    monkeypatch.setattr("rayferry.runtime_env.user_files._MAX_BYTES", 10)
    assert "put large files into S3" in refused(files=[tree({"b/a": "123456", "b/c": "123456"}) / "b"])


def test_a_file_that_cannot_be_read_is_refused(tree, monkeypatch):
    folder = tree({"b/a": "1"})
    read_bytes = Path.read_bytes

    def deny(path):
        if path == folder / "b/a":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert "files/b/a cannot be read: Permission denied" in refused(files=[folder / "b"])
