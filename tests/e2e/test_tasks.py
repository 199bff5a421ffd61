"""Every task and every format through the real Jobs API; the parts as DuckDB, pandas and Polars see them."""

import csv
import io
import json

import duckdb
import jsonschema
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.submit import collect, s3

from .batches import SCHEMA
from .conftest import PROMPTS, run, run_script

pytestmark = pytest.mark.e2e

TASKS = {
    "generate": ("formats", {"generated_text", "finish_reason", "num_generated_tokens"}),
    "chat": ("person", {"generated_text", "finish_reason", "num_generated_tokens"}),
    "embed": ("openai-embed", {"embedding", "embeddings"}),
    "classify": ("errors", {"label", "probs"}),
    "score": ("score", {"score"}),
}


def submit(job_file, name, rows, **changes):
    """Runs a job over rows written as JSON lines."""
    path = job_file(name, **{"input": {"uri": f"s3://rayferry/e2e/{name}/rows/"}} | changes)
    s3.write_bytes(f"s3://rayferry/e2e/{name}/rows/rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    return run("submit", path)


def data_of(name):
    parts = collect.read_manifest(f"s3://rayferry/e2e/{name}/out/")["parts"]
    contents = [s3.read_bytes(part["uri"]) for part in parts if part["kind"] == "data"]
    return [pq.read_table(io.BytesIO(content)) for content in contents]


def rows_of(name):
    return pa.concat_tables(data_of(name)).to_pylist()


@pytest.fixture(scope="module")
def jobs(job_file, checkpoints, embedded, too_many_errors):
    """A finished job for every task."""
    base = "s3://rayferry/e2e/formats/rows/"
    one_line = [prompt for prompt in PROMPTS if "\n" not in prompt]
    text = io.StringIO()
    csv.writer(text).writerows([["text", "number"], *([prompt, at] for at, prompt in enumerate(PROMPTS))])
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": PROMPTS, "number": list(range(len(PROMPTS)))}), stream)
    s3.write_bytes(base + "a.txt", "\n".join(one_line).encode())
    s3.write_bytes(base + "b.csv", text.getvalue().encode())
    s3.write_bytes(base + "c.parquet", stream.getvalue())
    s3.write_bytes(base + "d.json", json.dumps([{"text": prompt} for prompt in PROMPTS]).encode())
    done = {"formats": submit(job_file, "formats", [{"text": prompt} for prompt in PROMPTS])}
    person = {"structured_outputs": {"json": SCHEMA}, "temperature": 0.7, "max_tokens": 80}
    people = [{"text": f"Describe person number {number}, with name and age.", "label": number} for number in range(20)]
    done["person"] = submit(job_file, "person", people, task="chat", sampling=person)
    texts = [{"text": "a good film"}, {"text": "word " * 400}, {"text": "a bad one"}]
    small = {"max_model_len": 128, "dtype": "float32", "enforce_eager": True}
    done["score"] = submit(
        job_file, "score", [row | {"document": "a text"} for row in texts], task="score", sampling={}, engine=small,
        model=str(checkpoints / "scorer"), on_error={"prompt_too_long": "truncate_right"},
        input={"uri": "s3://rayferry/e2e/score/rows/", "document_column": "document"},
    )  # fmt: skip
    assert [found.stderr[-1500:] for found in done.values() if found.returncode] == []
    return done


@pytest.mark.parametrize("task", TASKS)
def test_duckdb_pandas_and_polars_read_all_parts_in_one_call(jobs, task, tmp_path):
    name, columns = TASKS[task]
    num_rows = 0
    for at, table in enumerate(data_of(name)):
        pq.write_table(table, tmp_path / f"{at}.parquet")
        num_rows += table.num_rows
    columns = columns | {"id", "prompt", "num_input_tokens", "model"}
    seen = [
        duckdb.sql(f"select * from '{tmp_path}/*.parquet'").pl(),
        pl.from_pandas(pd.read_parquet(tmp_path)),
        pl.read_parquet(f"{tmp_path}/*.parquet"),
    ]
    assert [(len(found), columns <= set(found.columns)) for found in seen] == [(num_rows, True)] * 3


@pytest.mark.parametrize("task", TASKS)
def test_all_parts_of_a_task_have_one_schema(jobs, task):
    tables = data_of(TASKS[task][0])
    assert len(tables) > (task not in {"embed", "classify", "score"})
    assert [table.schema for table in tables] == [tables[0].schema] * len(tables)


def test_the_same_rows_have_the_same_answers_in_every_format(jobs, same_engine):
    expected = {prompt: answer["text"] for prompt, answer in zip(PROMPTS, same_engine["generate"], strict=True)}
    answers = {}
    for row in rows_of("formats"):
        answers.setdefault(row["id"].partition(":")[0], {})[row["prompt"]] = row["generated_text"]
    one_line = {prompt: text for prompt, text in expected.items() if "\n" not in prompt}
    whole = dict.fromkeys(["b.csv", "c.parquet", "d.json", "rows.jsonl"], expected)
    assert answers == whole | {"a.txt": one_line}


def test_every_answer_of_a_json_schema_job_satisfies_the_schema(jobs):
    rows = rows_of("person")
    for row in rows:
        jsonschema.validate(json.loads(row["generated_text"]), SCHEMA)
    assert len(rows) == 20


def test_a_label_is_the_models_own_name_of_the_likeliest_class(jobs):
    names = ["bad", "so-so", "good"]
    rows = rows_of("errors")
    assert [row["label"] for row in rows] == [names[row["probs"].index(max(row["probs"]))] for row in rows]
    assert [sum(row["probs"]) for row in rows] == pytest.approx([1.0] * 2)


def test_a_prompt_too_long_is_a_row_of_errors_at_stage_length(jobs):
    assert collect.read_manifest("s3://rayferry/e2e/errors/out/")["errors"] == {"length": 1}


def test_a_prompt_too_long_is_cut_where_the_job_says_so(jobs):
    assert collect.read_manifest("s3://rayferry/e2e/score/out/")["counts"]["succeeded"] == 3


@pytest.mark.slow
def test_an_adapter_of_a_row_answers_as_it_does_by_llm_generate(model, checkpoints):
    found = run_script("lora_in_one_process.py", model, checkpoints)
    assert found["predictor"] == found["generate"]
    assert found["predictor"][0] != found["predictor"][1]
