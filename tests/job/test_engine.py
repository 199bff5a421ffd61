import json

import pytest

from rayferry.job.engine import _rank, _triton_cache


@pytest.mark.parametrize(("ranks", "expected"), [([8], 16), ([8, 24], 32), ([512], 512), ([], 16)])
def test_the_rank_is_the_least_that_holds_all_adapters(ranks, expected, tmp_path):
    folders = []
    for at, rank in enumerate(ranks):
        folders.append(tmp_path / str(at))
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert _rank(folders) == expected


@pytest.mark.parametrize(("name", "home"), [("HOME", "/home/me"), ("TRITON_HOME", "/scratch")])
def test_kernels_lie_where_triton_itself_looks_for_them(name, home, monkeypatch):
    monkeypatch.delenv("TRITON_HOME", raising=False)
    monkeypatch.setenv(name, home)
    assert _triton_cache() == f"{home}/.triton/cache"
