"""The hostile corpus through the whole pipeline on a real Ray head and S3 server: every row is accounted for."""

import importlib.util
import io
import json
import sys
import uuid
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import boto3
import pyarrow.parquet as pq
import pytest
import ray

from rayferry.job import pipeline, storage
from rayferry.job.answers import Answers
from rayferry.submit.local import stack as local_stack

pytestmark = pytest.mark.filterwarnings("ignore::ray.util.annotations.RayDeprecationWarning")

# tests are no package: a module beside them is loaded by its path
_SPEC = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
hostile = sys.modules["hostile"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hostile)

COLUMNS = {
    "data": ["id", "prompt", "rescued_data"],
    "errors": ["source_uri", "position", "id", "stage", "error_type", "error"],
}


class Short:
    """Answers every prompt at once with the same word."""

    def __init__(self, spec, device, progress, openai, **_options):
        self.answers = Answers(spec, openai=openai)
        progress.replica_ready.remote(load_s=0.5, vllm="stub")

    async def __call__(self, table):
        return self.answers.add_to(table, [self.answer(stage) for stage in table.column("stage").to_pylist()])

    @staticmethod
    def answer(stage):
        if stage is not None:
            return None
        completion = SimpleNamespace(text="yes", finish_reason="stop", stop_reason=None, token_ids=[1], logprobs=None)
        return [SimpleNamespace(outputs=[completion], prompt_token_ids=[1])]


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def carry_out(make_spec, contents, expected, **source):
    """Uploads the files, runs the job, and gives what came of it beside what should have."""
    prefix = uuid.uuid4().hex
    s3 = boto3.client("s3")
    for key, content in contents.items():
        s3.put_object(Bucket=local_stack.BUCKET, Key=f"{prefix}/in/{key}", Body=content)
    root = f"s3://{local_stack.BUCKET}/{prefix}/"
    spec = make_spec(
        task="chat",
        input={"uri": f"{root}in/", **source},
        output={"uri": f"{root}out/", "rows_per_part": 200},
        on_error={"max_error_rate": 1.0},
    )
    with redirect_stdout(io.StringIO()):
        manifest = pipeline.run(spec, "run-1", Short)
    tables = {"data": [], "errors": []}
    for part in manifest["parts"]:
        if part["kind"] in tables:
            files, path = storage.filesystem(part["uri"])
            tables[part["kind"]].append(pq.read_table(path, filesystem=files, partitioning=None))
    rows = {
        kind: [row for table in several for row in table.select(COLUMNS[kind]).to_pylist()]
        for kind, several in tables.items()
    }
    return SimpleNamespace(root=f"{root}in/", manifest=manifest, expected=expected, tables=tables, **rows)


@pytest.fixture(scope="module")
def plain(cluster, make_spec):
    return carry_out(make_spec, hostile.files(), hostile.expected())


@pytest.fixture(scope="module")
def templated(cluster, make_spec):
    return carry_out(make_spec, hostile.template_files(), hostile.template_expected(), template=hostile.TEMPLATE)


@pytest.fixture(scope="module")
def openai(cluster, make_spec):
    return carry_out(make_spec, hostile.openai_files(), hostile.openai_expected(), format="openai")


@pytest.fixture(params=["plain", "templated", "openai"])
def run(request):
    return request.getfixturevalue(request.param)


def test_the_corpus_is_large():
    assert hostile.num_hostile_rows() >= 200
    assert len(hostile.files()) >= 40


def test_no_row_is_expected_twice():
    for rows in (hostile.expected(), hostile.template_expected(), hostile.openai_expected()):
        assert len({(row.key, row.position) for row in rows}) == len(rows)


def test_every_row_is_accounted_for(run):
    num_bad = sum(row.stage is not None for row in run.expected)
    assert run.manifest["counts"] == {
        "total": len(run.expected),
        "succeeded": len(run.expected) - num_bad,
        "failed": num_bad,
    }


def test_the_rows_that_are_written_are_those_that_are_counted(run):
    counts = run.manifest["counts"]
    assert (len(run.data), len(run.errors)) == (counts["succeeded"], counts["failed"])


def test_every_bad_row_is_an_error_with_its_place_and_stage(run):
    expected = {(run.root + row.key, row.position): row.stage for row in run.expected if row.stage is not None}
    assert {(row["source_uri"], row["position"]): row["stage"] for row in run.errors} == expected


def test_every_error_says_why(run):
    assert [row for row in run.errors if not row["error"] or not row["error_type"]] == []


def test_the_manifest_counts_the_errors_of_every_stage(run):
    assert run.manifest["errors"] == Counter(row.stage for row in run.expected if row.stage is not None)


def test_every_good_row_is_answered_under_its_id_and_with_its_prompt(run):
    good = {row.id: row.prompt for row in run.expected if row.stage is None}
    found = {row["id"]: row["prompt"] for row in run.data}
    assert found.keys() == good.keys()
    assert [key for key, prompt in good.items() if prompt is not None and found[key] != prompt] == []


def test_no_id_comes_twice(run):
    assert Counter(row["id"] for row in [*run.data, *run.errors]).most_common(1)[0][1] == 1


def test_every_part_has_the_same_schema(run):
    assert len(run.tables["data"]) > 1 or len(run.data) <= 200
    for tables in run.tables.values():
        assert all(table.schema.equals(tables[0].schema, check_metadata=True) for table in tables)


def test_values_that_do_not_fit_their_column_are_kept(plain):
    late = ["x", [1], 2**70]
    rows = {row["id"]: row["rescued_data"] for row in plain.data}
    ids = [f"json/columns change.jsonl:{position}" for position in range(hostile.SAMPLED, hostile.SAMPLED + len(late))]
    assert [json.loads(rows[row_id])["late"] for row_id in ids] == late
