from types import SimpleNamespace

import pytest

from rayferry.job.hand_over import block_rows, blocks_at_once, equal_blocks, rows_at_once
from rayferry.job.hand_over import pool as pool_of


@pytest.mark.parametrize(
    ("rows", "row_bytes", "changes", "expected"),
    [
        (10, 100, {}, 32),
        (10**6, 100, {"sampling": {"max_tokens": 1}}, 12_288),
        (32_000, 100, {"sampling": {"max_tokens": 1}}, 2000),
        (32_000, 100, {"sampling": {"max_tokens": 1}, "replicas": 5}, 100),
        (10**6, 100, {"sampling": {"max_tokens": 512}}, 512),
        (10**6, 100, {"sampling": {"max_tokens": 512, "n": 8}}, 64),
        (10**6, 100, {"sampling": {"max_tokens": None}}, 256),
        (10**6, 100, {"sampling": {"max_tokens": 131_072}}, 32),
        (10**6, 100, {"sampling": {"max_tokens": 131_072}, "batch_size": 64}, 64),
        (10**6, 100, {"task": "embed", "sampling": {}}, 12_288),
        (10**6, 1 << 20, {}, 16),
        (10**6, 1 << 30, {}, 1),
    ],
)
def test_a_block_is_as_large_as_rows_bytes_and_work_allow(make_spec, rows, row_bytes, changes, expected):
    found = SimpleNamespace(num_rows=rows, row_bytes=row_bytes)
    assert block_rows(make_spec(**changes), found) == expected


@pytest.mark.parametrize(
    ("changes", "device", "num_rows", "expected"),
    [
        pytest.param({}, "gpu", 10**6, 4096, id="four rounds of what vLLM runs together"),
        pytest.param({}, "gpu", 10, 4096, id="one replica may have all"),
        pytest.param({}, "cpu", 10**6, 512, id="CPUs"),
        pytest.param({"engine": {"max_num_seqs": 64}}, "gpu", 10**6, 256, id="as many as the job lets run together"),
        pytest.param({"replicas": 4}, "gpu", 6001, 1501, id="its part of few rows"),
        pytest.param({"replicas": {"min": 1, "max": 4}}, "gpu", 10**6, 4096, id="its part of many rows"),
    ],
)
def test_a_replica_has_enough_rows_and_no_more_than_its_part(make_spec, changes, device, num_rows, expected):
    assert rows_at_once(make_spec(**changes), device, num_rows) == expected


@pytest.mark.parametrize(
    ("replicas", "rows", "rows_per_block", "expected"),
    [
        pytest.param(2, 100, 50, 3, id="a few at least"),
        pytest.param(1, 4096, 256, 16, id="all of its rows"),
        pytest.param(2, 2000, 32, 57, id="less than its part, as blocks may be larger than meant"),
        pytest.param(2, 4096, 2, 64, id="not too many"),
    ],
)
def test_ray_sends_a_replica_no_more_blocks_than_it_works_on(make_spec, replicas, rows, rows_per_block, expected):
    spec = make_spec(replicas=replicas)
    pool = pool_of(spec, blocks_at_once(spec, rows, rows_per_block))["compute"]
    told = (pool.min_size, pool.max_size, pool.max_concurrent_calls_per_actor, pool.max_tasks_in_flight_per_actor)
    assert told == (replicas, replicas, expected, expected)


def test_a_pool_that_grows_does_so_by_the_blocks_that_wait(make_spec):
    pool = pool_of(make_spec(replicas={"min": 1, "max": 4}), 5)["compute"]
    assert (pool.min_size, pool.max_size, pool.max_tasks_in_flight_per_actor) == (1, 4, None)


@pytest.mark.parametrize(
    ("changes", "device", "num_rows", "row_bytes", "expected"),
    [
        pytest.param({"replicas": 2}, "gpu", 4000, 1000, 16, id="all rows at once"),
        pytest.param({"replicas": 2}, "gpu", 8192, 1000, 16, id="the most that are"),
        pytest.param({"replicas": 2}, "gpu", 8193, 1000, None, id="more than that"),
        pytest.param({"replicas": 4}, "gpu", 600, 1000, 5, id="no less than a batch"),
        pytest.param({"replicas": 4}, "gpu", 100, 1000, None, id="hardly any"),
        pytest.param({"replicas": 2, "batch_size": 1}, "gpu", 1, 32 << 20, 1, id="a large row"),
        pytest.param({"replicas": 4}, "gpu", 0, 1000, None, id="nobody knows how many"),
        pytest.param({"replicas": 2, "sampling": {"max_tokens": 4096}}, "gpu", 8000, 1000, 63, id="long answers"),
        pytest.param({"replicas": 2, "sampling": {"max_tokens": 8192}}, "gpu", 8000, 1000, None, id="too long ones"),
        pytest.param({"replicas": 2}, "gpu", 4000, 1 << 20, None, id="more bytes than are put together"),
        pytest.param({"replicas": 1}, "gpu", 4000, 1000, None, id="one replica"),
        pytest.param({"replicas": {"min": 2, "max": 4}}, "gpu", 4000, 1000, None, id="a number that changes"),
        pytest.param({"replicas": 2}, "cpu", 500, 1000, None, id="CPUs"),
    ],
)
def test_replicas_get_equal_parts_of_rows_that_can_be_with_them_at_once(
    make_spec, changes, device, num_rows, row_bytes, expected
):
    assert equal_blocks(make_spec(**changes), device, num_rows, row_bytes) == expected
