"""The package that travels: the same bytes from the same job everywhere, and nothing in it but what must go."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rayferry.job
from rayferry.job.spec import parse
from rayferry.runtime_env.staging import stage

URIS = {"input": {"uri": "s3://bucket/in/"}, "output": {"uri": "s3://bucket/out/"}}
DATA = {"model": "m", **URIS}
STAGE_ELSEWHERE = """
import json, sys
from rayferry.job.spec import parse
from rayferry.runtime_env.staging import stage
import rayferry.job
print(rayferry.job.__file__, stage(parse(json.loads(sys.argv[1]), "")).sha256)
"""


@pytest.fixture
def archive():
    return zipfile.ZipFile(io.BytesIO(stage(parse(DATA, "")).content))


def staged(data):
    return stage(parse(data, ""))


def spec_json(data):
    return json.loads(zipfile.ZipFile(io.BytesIO(staged(data).content)).read("spec.json"))


def test_only_the_job_and_its_spec_travel(archive):
    assert all(name == "spec.json" or name.startswith("rayferry/job/") for name in archive.namelist())


def test_every_module_of_the_job_travels(archive):
    root = Path(rayferry.job.__file__).parent
    modules = {f"rayferry/job/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}
    assert modules == {name for name in archive.namelist() if name.endswith(".py")}


def test_the_namespace_stays_one(archive):
    assert "rayferry/__init__.py" not in archive.namelist()


def test_a_package_is_small(archive):
    assert len(staged(DATA).content) < 125_000


def statements(source):
    """What a module does, and in which lines; docstrings do nothing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Constant(str())):
                node.value.value = ""
    lines = [(type(node).__name__, node.lineno) for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return ast.dump(tree), lines


def test_what_travels_is_the_code_that_is_here_line_by_line(archive):
    root = Path(rayferry.job.__file__).parent
    for path in root.rglob("*.py"):
        sent = archive.read(f"rayferry/job/{path.relative_to(root).as_posix()}").decode()
        assert statements(sent) == statements(path.read_text())


def test_comments_and_docstrings_stay_at_home(archive):
    sent = archive.read("rayferry/job/pipeline.py").decode()
    assert '"""' not in sent
    assert not any(line.lstrip().startswith("#") for line in sent.splitlines())


def test_a_package_is_a_sound_zip(archive):
    assert archive.testzip() is None


def test_every_entry_is_the_same_but_for_name_and_content(archive):
    seen = {(e.compress_type, e.date_time, e.external_attr, e.create_system, e.extra) for e in archive.infolist()}
    assert seen == {(zipfile.ZIP_DEFLATED, (1980, 1, 1, 0, 0, 0), 0o100644 << 16, 3, b"")}


def test_entries_are_in_order_of_their_names(archive):
    assert archive.namelist() == sorted(archive.namelist())


def test_the_files_told_are_the_files_inside(archive):
    assert staged(DATA).files == tuple((entry.filename, entry.file_size) for entry in archive.infolist())


def test_the_same_job_gives_the_same_bytes_twice():
    assert staged(DATA).content == staged(DATA).content


def test_the_order_of_the_job_files_keys_does_not_matter():
    data = {**DATA, "engine": {"dtype": "auto", "seed": 1}, "runtime_env": {"env_vars": {"A": "1", "B": "2"}}}
    turned = {
        "runtime_env": {"env_vars": {"B": "2", "A": "1"}},
        "engine": {"seed": 1, "dtype": "auto"},
        **dict(reversed(DATA.items())),
    }
    assert parse(data, "") == parse(turned, "")
    assert staged(data).content == staged(turned).content


def test_where_the_cluster_is_does_not_matter():
    assert staged({**DATA, "cluster": {"address": "http://head:8265"}}).content == staged(DATA).content


def test_the_laptops_kind_does_not_matter(monkeypatch):
    here = staged(DATA).content
    monkeypatch.setattr(sys, "platform", "win32")  # zipfile writes it into each entry
    assert staged(DATA).content == here


def test_another_job_has_another_name():
    assert staged(DATA).name != staged({**DATA, "name": "other"}).name


def test_the_name_is_made_of_the_bytes():
    package = staged(DATA)
    assert package.name == f"rayferry-{package.sha256[:16]}.zip"


@pytest.fixture
def elsewhere(tmp_path):
    """A copy of the installed package, whose digest of a package can be asked for."""
    for name in ("job", "runtime_env"):
        shutil.copytree(Path(rayferry.job.__file__).parent.parent / name, tmp_path / "rayferry" / name)

    def digest():
        environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
        command = [sys.executable, "-c", STAGE_ELSEWHERE, json.dumps(DATA)]
        where, sha256 = subprocess.run(
            command, env=environ, capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout.split()
        assert where.startswith(str(tmp_path))
        return sha256

    return tmp_path / "rayferry" / "job", digest


def test_times_and_modes_of_the_installed_files_do_not_matter(elsewhere):
    folder, digest = elsewhere
    for number, path in enumerate(sorted(folder.rglob("*.py"), reverse=True)):
        path.chmod(0o755 if number % 2 else 0o600)
        os.utime(path, (1e9 + number, 1e9 + number))
    assert digest() == staged(DATA).sha256


def test_stray_files_beside_the_modules_stay_at_home(elsewhere):
    folder, digest = elsewhere
    for name in (
        ".env",
        "id_rsa",
        "key.pem",
        "notes.txt",
        "spec.py.swp",
        "__pycache__/x.pyc",
        ".git/config",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    assert digest() == staged(DATA).sha256


def test_a_changed_module_changes_the_package(elsewhere):
    folder, digest = elsewhere
    with (folder / "log.py").open("a") as file:
        file.write("# changed\n")
    assert digest() != staged(DATA).sha256


def test_what_runs_is_what_travelled(archive, tmp_path):
    archive.extractall(tmp_path)
    program = "import rayferry.job.__main__ as main; print(main.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "rayferry" / "job" / "__main__.py")


@pytest.mark.parametrize(
    "further",
    [
        {},
        {"name": "n", "task": "chat", "revision": "main", "timeout": "6h", "batch_size": 7},
        {"replicas": {"min": 1, "max": 3}},
        {"input": {"uri": "s3://anonymous@bucket/in", "format": "csv", "column": "prömpt", "anonymous": True}},
        {"output": {"uri": "s3://bucket/o", "rows_per_part": 5, "preview_rows": 2}},
        {"sampling": {"temperature": 0, "stop": ["a"], "top_k": -1, "bad_words": ["x"]}},
        {"sampling": {"stop": "a"}},
        {"sampling": {"logit_bias": {5: -1.5}}},
        {"engine": {"tensor_parallel_size": 2, "hf_overrides": {"a": [1, {"b": None}]}, "max_model_len": None}},
        {"resources": {"device": "cpu", "accelerator_type": "H100"}, "on_error": {"max_error_rate": 1}},
        {"runtime_env": {"pip": ["a"], "env_vars": {"A": "ü"}}},
    ],
    ids=str,
)
def test_the_cluster_reads_the_job_that_the_laptop_read(further):
    data = {**DATA, **further}
    assert parse(spec_json(data), "spec.json") == parse(data, "job.yaml")


def test_the_laptops_cluster_stays_at_home():
    assert "cluster" not in spec_json({**DATA, "cluster": {"address": "http://head:8265"}})
