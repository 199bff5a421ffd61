import json
import multiprocessing
import os
import sys

import pytest

from rayferry.job import engine
from rayferry.job.engine import _rank


@pytest.mark.parametrize(("ranks", "expected"), [([8], 16), ([8, 24], 32), ([512], 512), ([], 16)])
def test_the_rank_is_the_least_that_holds_all_adapters(ranks, expected, tmp_path):
    folders = []
    for at, rank in enumerate(ranks):
        folders.append(tmp_path / str(at))
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert _rank(folders) == expected


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("TRITON_HOME", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["HOME", "TRITON_HOME"])
def test_kernels_are_kept_where_triton_itself_looks_for_them(name, home, monkeypatch):
    monkeypatch.setenv(name, str(home / "other"))
    engine._keep_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == str(home / "other/.triton/cache")


def test_where_kernels_are_kept_is_the_users_to_say(home, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/scratch")
    engine._keep_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == "/scratch"


def test_without_a_home_that_can_be_written_kernels_lie_where_torch_puts_them(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    engine._keep_kernels()
    assert "TRITON_CACHE_DIR" not in os.environ


class Vllm:
    """Stands for the module; takes what `LLM` is made with, and how processes are spawned meanwhile."""

    __version__ = "stub"

    def LLM(self, **options):  # noqa: N802  # vLLM's name
        self.options = options
        self.context = multiprocessing.get_context("spawn")
        return self


@pytest.fixture
def loaded(home, make_spec, monkeypatch):
    """Loads a job's engine with vLLM's module in place of which a stub is; gives the stub."""
    stub = Vllm()
    monkeypatch.setitem(sys.modules, "vllm", stub)
    monkeypatch.setattr(engine.arguments, "known", lambda: None)
    monkeypatch.setattr(engine.fit, "check", lambda *_: None)
    monkeypatch.setattr(engine, "serve", lambda: "served")
    monkeypatch.setattr(engine, "spawn", lambda: "spawned")
    monkeypatch.setattr(engine, "GeneratingEngine", lambda llm, *_: llm)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")  # which the replica sets for its own process

    def load(**options):
        return engine.load(make_spec(model=str(home), engine=options), "gpu")

    return load


def test_workers_of_several_gpus_are_processes_of_the_replica(loaded):
    assert loaded(tensor_parallel_size=2).options["distributed_executor_backend"] == "mp"
    assert loaded(pipeline_parallel_size=2).options["distributed_executor_backend"] == "mp"
    assert "distributed_executor_backend" not in loaded().options


@pytest.mark.parametrize("options", [{}, {"tensor_parallel_size": 2}])
def test_an_engine_on_gpus_begins_with_vllm_imported(loaded, options):
    assert loaded(**options).context == "served"


def test_where_vllm_binds_processes_to_memory_it_spawns_them(loaded):
    assert loaded(numa_bind=True).context == "spawned"
