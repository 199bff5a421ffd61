"""The wheel that `make venv` built: these files and no others."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).with_name("golden_wheel.txt")


@pytest.fixture(scope="module")
def wheel():
    (path,) = (ROOT / "dist").glob("rayferry-*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    """Names in the wheel; the version in its own folder's name left open."""
    with zipfile.ZipFile(wheel) as archive:
        version = wheel.name.split("-")[1]
        return [name.replace(f"rayferry-{version}.", "rayferry-VERSION.") for name in archive.namelist()]


def test_the_wheel_holds_the_golden_set_of_files(names):
    assert sorted(names) == GOLDEN.read_text().splitlines()


def test_only_the_package_and_its_record_are_at_the_top(names):
    assert {name.split("/")[0] for name in names} == {"rayferry", "rayferry-VERSION.dist-info"}


def test_the_package_is_a_namespace(names):
    assert "rayferry/__init__.py" not in names


@pytest.mark.parametrize("package", ["job", "runtime_env", "submit"])
def test_each_package_says_that_it_has_types(names, package):
    assert f"rayferry/{package}/py.typed" in names


def test_no_bytecode_tests_or_hidden_files_are_shipped(names):
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name or "/." in name]


def test_every_module_of_the_checkout_is_shipped(names):
    sources = {
        f"rayferry/{path.relative_to(ROOT).as_posix()}"
        for folder in ("job", "runtime_env", "submit")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sources == {name for name in names if name.endswith(".py")}


def test_every_shipped_module_is_the_checkouts(wheel):
    with zipfile.ZipFile(wheel) as archive:
        changed = [
            name
            for name in archive.namelist()
            if name.endswith(".py") and archive.read(name) != (ROOT / name.removeprefix("rayferry/")).read_bytes()
        ]
    assert changed == [], "run make venv"


def test_the_command_is_installed_with_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert archive.read(entry).decode().split() == [
            "[console_scripts]",
            "rayferry",
            "=",
            "rayferry.submit.cli:main",
        ]


def test_the_licence_travels(names):
    assert "rayferry-VERSION.dist-info/licenses/LICENSE" in names
