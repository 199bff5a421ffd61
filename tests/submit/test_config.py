"""Which cluster is chosen, and where the laptop keeps its own files."""

import os
from pathlib import Path

import pytest

from rayferry.job.errors import RayferryError, SpecError
from rayferry.submit.config import Address, cache_folder, resolve_address, state_folder, without_password

FLAG, FILE, API, RAY = "http://flag:1", "http://file:2", "http://api:3", "http://ray:4"


@pytest.mark.parametrize(
    ("flag", "job_file", "environ", "expected"),
    [
        (FLAG, None, {}, Address(FLAG, "--address")),
        (None, FILE, {}, Address(FILE, "the job file")),
        (None, None, {"RAY_API_SERVER_ADDRESS": API}, Address(API, "RAY_API_SERVER_ADDRESS")),
        (None, None, {"RAY_ADDRESS": RAY}, Address(RAY, "RAY_ADDRESS")),
        (None, None, {"RAY_ADDRESS": RAY, "RAY_API_SERVER_ADDRESS": API}, Address(API, "RAY_API_SERVER_ADDRESS")),
        (FLAG, FLAG, {"RAY_ADDRESS": FLAG}, Address(FLAG, "--address")),
        (FLAG + "/", FLAG, {"RAY_ADDRESS": FLAG + "//"}, Address(FLAG, "--address")),
        (FLAG, None, {"RAY_ADDRESS": ""}, Address(FLAG, "--address")),
        ("HTTP://Head:8265", None, {}, Address("http://Head:8265", "--address")),
        (" http://head:8265 ", None, {}, Address("http://head:8265", "--address")),
        ("https://head/ray/", None, {}, Address("https://head/ray", "--address")),
        ("http://[::1]:8265", None, {}, Address("http://[::1]:8265", "--address")),
    ],
)
def test_the_address_comes_from_the_first_that_gives_one(flag, job_file, environ, expected):
    assert resolve_address(flag, job_file, environ) == expected


@pytest.mark.parametrize(
    ("flag", "job_file", "environ", "note"),
    [
        (FLAG, None, {"RAY_ADDRESS": RAY}, f"--address wins over RAY_ADDRESS={RAY}"),
        (FLAG, FILE, {}, f"--address wins over the job file={FILE}"),
        (None, FILE, {"RAY_API_SERVER_ADDRESS": API}, f"the job file wins over RAY_API_SERVER_ADDRESS={API}"),
    ],
)
def test_a_conflict_with_what_is_explicit_is_said(flag, job_file, environ, note):
    assert resolve_address(flag, job_file, environ).note == note


def test_no_address_says_how_to_get_one():
    with pytest.raises(SpecError, match="rayferry local up"):
        resolve_address(None, None, {})


@pytest.mark.parametrize(
    "address",
    [
        "auto",
        "head:8265",
        "127.0.0.1:6379",
        "ray://head:10001",
        "http://",
        "http:///x",
        "ftp://head",
        "http://[::1:8265",
        "http://he ad:8265",
    ],
)
@pytest.mark.parametrize("source", ["--address", "the job file", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_what_is_no_http_address_is_refused_by_its_source(address, source):
    flag, job_file = (address if source == name else None for name in ("--address", "the job file"))
    with pytest.raises(SpecError, match=f"^{source}: .*is not the address of a Jobs API"):
        resolve_address(flag, job_file, {source: address})


def test_a_ray_address_of_another_kind_does_not_matter_beside_a_flag():
    assert resolve_address(FLAG, None, {"RAY_ADDRESS": "auto"}).url == FLAG


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265", True),
        ("http://LOCALHOST", True),
        ("http://[::1]:8265", True),
        ("http://head:8265", False),
        ("http://127.0.0.1.example.com", False),
    ],
)
def test_loopback_is_told_by_the_host(url, expected):
    assert Address(url, "test").is_loopback is expected


@pytest.mark.parametrize(
    ("folder", "variables", "expected"),
    [
        (state_folder, {"RAYFERRY_STATE": "/a"}, "/a"),
        (state_folder, {"RAYFERRY_STATE": "/a/"}, "/a"),
        (state_folder, {"RAYFERRY_STATE": "", "XDG_STATE_HOME": "/x"}, "/x/rayferry"),
        (state_folder, {"XDG_STATE_HOME": "/x"}, "/x/rayferry"),
        (state_folder, {"XDG_STATE_HOME": ""}, "/home/u/.local/state/rayferry"),
        (state_folder, {}, "/home/u/.local/state/rayferry"),
        (cache_folder, {"RAYFERRY_CACHE": "/a"}, "/a"),
        (cache_folder, {"XDG_CACHE_HOME": "/x"}, "/x/rayferry"),
        (cache_folder, {}, "/home/u/.cache/rayferry"),
    ],
)
def test_own_folders_follow_the_environment(monkeypatch, folder, variables, expected):
    for name in ("RAYFERRY_STATE", "RAYFERRY_CACHE", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert folder() == Path(expected)


def test_a_relative_state_folder_is_where_the_command_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYFERRY_STATE", "state")
    assert state_folder() == tmp_path / "state"


@pytest.mark.parametrize("spelling", ["{tmp}/real", "{tmp}/link", "{tmp}/link/../real", "../real", "."])
def test_every_spelling_of_a_state_folder_gives_the_same(monkeypatch, tmp_path, spelling):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    monkeypatch.setenv("RAYFERRY_STATE", spelling.format(tmp=tmp_path))
    assert state_folder() == tmp_path / "real"


def test_no_home_says_what_to_set(monkeypatch):
    monkeypatch.delenv("RAYFERRY_STATE", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # of whom the system knows no home either
    with pytest.raises(RayferryError, match="set HOME, or RAYFERRY_STATE"):
        state_folder()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://me:pass@proxy:3128", "http://proxy:3128"),
        ("me:pass@proxy:3128", "proxy:3128"),
        ("http://me:pa/ss@proxy:3128", "http://proxy:3128"),
        ("http://me:pa#ss@proxy:3128", "http://***"),
        ("https://head/?token=abc", "https://head/"),
        ("https://head/#abc", "https://head/"),
    ],
)
def test_an_address_is_shown_without_what_is_secret_in_it(url, shown):
    assert without_password(url) == shown


def test_a_command_to_go_on_with_finds_the_same_cluster():
    place = Address(FLAG, "--address", options=("--address", FLAG, "--verify", "/my certs/ca.pem"))
    assert place.command("logs -f a") == f"rayferry logs -f a --address {FLAG} --verify '/my certs/ca.pem'"


@pytest.mark.parametrize("port", ["99999", "abc", "0", "-1", ""])
@pytest.mark.parametrize("source", ["--address", "RAY_ADDRESS"])
def test_a_port_that_is_none_is_refused_by_its_source(port, source):
    flag = f"http://h:{port}" if source == "--address" else None
    with pytest.raises(SpecError, match=f"^{source}: 'http://h:{port}': a port is a number from 1 to 65535"):
        resolve_address(flag, None, {source: f"http://h:{port}"})


@pytest.mark.parametrize("flag", ["", " "])
def test_an_empty_flag_is_refused(flag):
    with pytest.raises(SpecError, match=r"^--address is empty"):
        resolve_address(flag, FILE, {})


@pytest.mark.parametrize("rest", ["/?x=1", "?token=hidden", "#a", "?"])
def test_an_address_with_a_query_is_refused_without_showing_it(rest):
    with pytest.raises(SpecError, match=r"^--address: an address ends before any .*; give http://h:1/? alone$"):
        resolve_address("http://h:1" + rest, None, {})


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(SpecError, match=r"^--address: an address has no place for a password") as caught:
        resolve_address("http://me:hidden@h:1", None, {})
    assert "hidden" not in str(caught.value)
