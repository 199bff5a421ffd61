from dataclasses import replace

import pytest

from rayferry.job import identity, manifest
from rayferry.job.errors import TornError
from rayferry.job.progress import Snapshot
from rayferry.job.sink import Part
from rayferry.job.storage import File
from rayferry.job.tally import Life, Tally

FILES = [File("bucket/in/a.txt", 10, "a.txt", "5")]


def part(kind, name, num_rows, num_generated=0):
    return Part(f"s3://bucket/out/{kind}/{name}", kind, num_rows, 100, "00" * 32, 3 * num_rows, num_generated)


PARTS = [part("errors", "r-1", 1), part("data", "r-1", 2, 20), part("data", "r-0", 3, 30)]


@pytest.fixture
def build(make_spec):
    """The manifest of a run of 6 rows that began at 1,000,000,000 s and loaded in 2 s."""

    def make(now=None, parts=PARTS, spec=None):
        now = now or Snapshot(rows_read=6, load_s=[2.0004], ready_at=1e9 + 2, vllm="0.32.0")
        return manifest.build(
            spec or make_spec(),
            asked=identity.asked({}, FILES),
            parts=parts,
            attempts=["run-1"],
            now=now,
            started_at=1e9,
        )

    return make


def test_counts_are_the_rows_of_the_parts(build):
    assert build()["counts"] == {"total": 6, "succeeded": 5, "failed": 1}


def test_tokens_are_those_of_the_parts(build):
    assert build()["tokens"] == {"input": 18, "generated": 50}


def test_errors_are_counted_by_stage_in_the_order_of_the_stages(build):
    parts = [
        Part("a", "errors", 3, 1, "", stages={"engine": 1, "parse": 2}),
        Part("b", "errors", 1, 1, "", stages={"read": 1}),
        Part("c", "data", 2, 1, "", num_rescued=2),
        Part("d", "openai", 6, 1, ""),
    ]
    found = build(parts=parts)
    assert list(found["errors"].items()) == [("read", 1), ("parse", 2), ("engine", 1)]
    assert (found["num_rescued"], found["counts"]) == (2, {"total": 6, "succeeded": 2, "failed": 4})


def test_parts_are_in_order_of_their_uris(build):
    uris = [found["uri"] for found in build()["parts"]]
    assert uris == [f"s3://bucket/out/{name}" for name in ("data/r-0", "data/r-1", "errors/r-1")]


def test_a_part_is_listed_with_all_that_a_reader_checks(build):
    assert build()["parts"][0] == {
        "uri": "s3://bucket/out/data/r-0",
        "kind": "data",
        "num_rows": 3,
        "num_bytes": 100,
        "sha256": "00" * 32,
        "num_input_tokens": 9,
        "num_generated_tokens": 30,
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 1),
        ("name", "rayferry"),
        ("submission_id", "run-1"),
        ("attempts", ["run-1"]),
        ("output_uri", "s3://bucket/out/"),
        ("model", "m"),
        ("revision", None),
        ("task", "generate"),
        ("max_error_rate", 0.05),
        ("started_at", "2001-09-09T01:46:40Z"),
    ],
)
def test_the_run_is_named(build, key, value):
    assert build()[key] == value


def test_load_times_are_rounded(build):
    assert build()["seconds"]["load"] == [2.0]


def test_the_versions_that_ran_are_told(build):
    assert {"rayferry", "python", "ray", "pyarrow", "vllm"} == {
        name for name, version in build()["versions"].items() if version
    }


def test_speed_counts_from_the_first_ready_replica(build):
    found = build()
    assert found["tokens_per_s"] == round(50 / found["seconds"]["generate"], 1)


def test_the_first_answer_and_the_time_of_writing_are_told(build):
    lives = [Life(1e9, ready_at=1e9 + 1, tally=Tally(first_s=at)) for at in (6, 4.00049)]
    seconds = build(Snapshot(rows_read=6, lives=[*lives, Life(1e9)], write_s=1.23456))["seconds"]
    assert (seconds["first_answer"], seconds["write"]) == (5.0, 1.235)


def test_what_the_engines_ran_with_is_told(build):
    assert build(Snapshot(rows_read=6, limits={"max_num_seqs": 256}))["engine"] == {"max_num_seqs": 256}


def test_without_a_ready_replica_there_is_no_speed(build):
    found = build(Snapshot(rows_read=6))
    assert (found["tokens_per_s"], found["seconds"]["generate"]) == (None, None)


@pytest.mark.parametrize("rows_read", [0, 5, 7])
def test_no_manifest_is_made_if_the_rows_written_are_not_the_rows_read(build, rows_read):
    with pytest.raises(TornError, match=f"{rows_read} rows were read, but 5 answers and 1 errors were written"):
        build(Snapshot(rows_read=rows_read))


def test_a_run_of_no_rows_has_a_manifest(build):
    assert build(Snapshot(), parts=[])["counts"] == {"total": 0, "succeeded": 0, "failed": 0}


def fingerprint(spec, files):
    return identity.fingerprint(identity.asked(identity.settings(spec), files))


def test_a_fingerprint_is_a_sha256(make_spec):
    kind, _, digest = fingerprint(make_spec(), FILES).partition(":")
    assert (kind, len(digest)) == ("sha256", 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"revision": "main"},
        {"task": "chat"},
        {"sampling": {"temperature": 0.5}},
        {"sampling": {"seed": 1}},
        {"engine": {"max_model_len": 128}},
        {"engine": {"quantization": "fp8"}},
        {"engine": {"load_format": "dummy"}},
        {"engine": {"something_new": 1}},
        {"input": {"column": "prompt"}},
        {"input": {"template": "{{ a }}"}},
        {"on_error": {"prompt_too_long": "truncate_left"}},
        {"task": "chat", "chat": {"system_prompt": "Be brief."}},
        {"lora": {"adapters": {"a": "/a"}}},
        {"input": {"uri": "s3://bucket/other/"}},
    ],
    ids=str,
)
def test_what_changes_the_answers_changes_the_fingerprint(make_spec, changes):
    assert fingerprint(make_spec(**changes), FILES) != fingerprint(make_spec(), FILES)


@pytest.mark.parametrize(
    "files",
    [[], [replace(FILES[0], num_bytes=11)], [replace(FILES[0], version="6")], [*FILES, replace(FILES[0], path="b")]],
)
def test_other_files_are_another_fingerprint(make_spec, files):
    assert fingerprint(make_spec(), files) != fingerprint(make_spec(), FILES)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"output": {"uri": "s3://bucket/elsewhere/"}},
        {"replicas": 8},
        {"batch_size": 1},
        {"timeout": "6h"},
        {"engine": {"tensor_parallel_size": 8}},
        {"engine": {"gpu_memory_utilization": 0.5, "max_num_seqs": 9}},
        {"input": {"anonymous": True}},
        {"runtime_env": {"env_vars": {"A": "b"}}},
    ],
    ids=str,
)
def test_what_only_changes_the_way_keeps_the_fingerprint(make_spec, changes):
    assert fingerprint(make_spec(**changes), FILES) == fingerprint(make_spec(), FILES)


@pytest.mark.parametrize(
    ("total", "failed", "allowed", "too_many"),
    [
        (0, 0, 0.0, False),
        (100, 5, 0.05, False),
        (100, 6, 0.05, True),
        (100, 1, 0.0, True),
        (100, 100, 1.0, False),
        (3, 1, 1 / 3, False),
    ],
)
def test_too_many_errors_is_more_than_the_allowed_share(total, failed, allowed, too_many):
    found = {"counts": {"total": total, "failed": failed}, "max_error_rate": allowed}
    assert manifest.too_many_errors(found) is too_many


def test_the_error_rate_of_no_rows_is_nought():
    assert manifest.error_rate({"counts": {"total": 0, "failed": 0}}) == 0.0
