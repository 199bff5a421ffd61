import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.job.checkpoint import Record
from rayferry.job.errors import JobError, TooManyErrorsError
from rayferry.job.layout import Layout
from rayferry.job.progress import Board
from rayferry.job.rows import ERROR_SCHEMA, RESPONSE, SOURCE_SCHEMA, answer_schema, data_schema
from rayferry.job.sink import Part, PartsDatasink
from rayferry.job.spec import parse

SPEC = parse({"model": "m", "input": {"uri": "/in"}, "output": {"uri": "/out"}}, "job.yaml")
OWN = pa.schema([("n", pa.int64()), ("rescued_data", pa.string())])
DATA = data_schema(SPEC, OWN, openai=False)
BLOCK = pa.schema([*SOURCE_SCHEMA, *OWN, *answer_schema(SPEC, openai=False)])
ANSWER = {
    "generated_text": "t",
    "finish_reason": "stop",
    "num_input_tokens": 3,
    "num_generated_tokens": 2,
    "model": "m",
}
FAILURE = {
    "stage": "parse",
    "error_type": "BadPrompt",
    "error": "column 'text' is empty",
    "raw": '{"text": ""}',
}


def row(position, **more):
    return {"id": f"a:{position}", "source_uri": "s3://bucket/a", "position": position} | more


def good(position):
    return row(position, prompt=f"p{position}", **ANSWER)


def failed(position):
    return row(position, **FAILURE)


def block(*rows):
    """A block as the predictor returns it."""
    return pa.Table.from_pylist(list(rows), BLOCK)


@pytest.fixture
def write(tmp_path):
    """Runs one write task; gives its parts."""

    def write_blocks(*blocks, task_idx=0, board=None):
        sink = PartsDatasink(Layout(str(tmp_path)), "run", 1000, DATA, board)
        returned = sink.write(blocks, SimpleNamespace(task_idx=task_idx))
        sink.on_write_complete(SimpleNamespace(write_returns=[returned]))
        return sink.parts

    return write_blocks


def rows_of(part):
    return pq.read_table(part.uri).to_pylist()


def test_good_rows_go_to_data_and_failed_ones_to_errors(write):
    data, errors = write(block(good(0), failed(1), good(2)))
    assert ([r["id"] for r in rows_of(data)], [r["id"] for r in rows_of(errors)]) == (["a:0", "a:2"], ["a:1"])


def test_parts_lie_where_the_layout_says(write, tmp_path):
    data, errors = write(block(good(0), failed(1)), task_idx=7)
    assert re.fullmatch(rf"{tmp_path}/data/run-000007-[0-9a-f]{{4}}.parquet", data.uri)
    assert errors.uri == data.uri.replace("/data/", "/errors/")


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [([good(0)], ["data"]), ([failed(0)], ["errors"]), ([good(0), failed(1)], ["data", "errors"])],
    ids=["good", "failed", "both"],
)
def test_no_empty_part_is_written(write, tmp_path, rows, kinds):
    write(block(*rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_meta", *kinds]


def test_blocks_without_rows_make_no_part(write):
    assert write(block(good(0)).slice(1), pa.table({})) == []


def test_the_blocks_of_a_task_make_one_part(write):
    (data,) = write(block(good(0)), block(good(1)).slice(1), block(good(2)))
    assert [found["id"] for found in rows_of(data)] == ["a:0", "a:2"]


def test_a_pandas_block_is_written_too(write):
    (data,) = write(block(good(0)).to_pandas(types_mapper=pd.ArrowDtype))
    assert rows_of(data)[0]["prompt"] == "p0"


def test_data_has_the_columns_of_the_contract(write):
    (data,) = write(block(good(0)))
    assert pq.read_schema(data.uri).names == [
        "id",
        "prompt",
        "generated_text",
        "finish_reason",
        "num_input_tokens",
        "num_generated_tokens",
        "model",
        "n",
        "rescued_data",
    ]


def test_errors_have_the_columns_of_the_contract(write):
    _, errors = write(block(good(0), failed(1)))
    assert pq.read_schema(errors.uri).equals(ERROR_SCHEMA)


def test_a_failed_row_tells_all_that_is_known_of_it(write):
    (errors,) = write(block(failed(4)))
    assert rows_of(errors) == [row(4) | FAILURE]


def test_a_part_is_described_as_it_is(write):
    (data,) = write(block(good(0), good(1)))
    content = Path(data.uri).read_bytes()
    assert data == Part(
        uri=data.uri,
        kind="data",
        num_rows=2,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        num_input_tokens=6,
        num_generated_tokens=4,
    )


def test_an_errors_part_counts_no_tokens(write):
    (errors,) = write(block(failed(0)))
    assert (errors.num_input_tokens, errors.num_generated_tokens) == (0, 0)


def test_a_task_that_is_tried_again_replaces_its_own_part(write, tmp_path):
    first = write(block(good(0), failed(1)))
    assert (write(block(good(0), failed(1))), len([*tmp_path.rglob("*.parquet")])) == (first, 2)


def test_a_task_that_is_tried_again_with_other_rows_is_refused(write):
    write(block(good(0)))
    with pytest.raises(JobError, match="of other rows"):
        write(block(good(1)))


def test_a_task_whose_end_nobody_learned_of_tells_the_board_when_it_is_tried_again(write, near_board):
    write(block(good(0)))
    write(block(good(0)), board=near_board)
    assert near_board.board.snapshot().succeeded == 1


def test_two_tasks_write_two_parts(write, tmp_path):
    write(block(good(0)), task_idx=0)
    write(block(good(1)), task_idx=1)
    assert len([*tmp_path.rglob("*.parquet")]) == 2


def test_data_has_its_columns_whatever_the_rows_hold(write):
    (part,) = write(block(good(0)))
    assert pq.read_schema(part.uri).equals(DATA)


def test_a_data_part_counts_the_rows_that_have_something_rescued(write):
    (part,) = write(block(good(0), good(1) | {"rescued_data": "{}"}))
    assert (part.num_rescued, "num_rescued" in part.to_json()) == (1, True)


def test_an_errors_part_counts_its_rows_by_stage(write):
    (part,) = write(block(failed(0), failed(1), failed(2) | {"stage": "engine"}))
    assert part.to_json()["stages"] == {"parse": 2, "engine": 1}


def test_a_part_tells_only_what_applies_to_its_kind(write):
    data, errors = write(block(good(0), failed(1)))
    assert ("stages" in data.to_json(), "num_rescued" in errors.to_json()) == (False, False)


def responses(write, *rows):
    """The lines of the part of openai/."""
    table = block(*({name: value for name, value in one.items() if name != RESPONSE} for one in rows))
    column = pa.array([one.get(RESPONSE) for one in rows], pa.string())
    part = write(table.append_column(RESPONSE, column))[-1]
    return part, [json.loads(line) for line in Path(part.uri).read_text().splitlines()]


def test_responses_go_to_openai_line_by_line_and_not_to_data(write, tmp_path):
    part, (line,) = responses(write, good(0) | {RESPONSE: '{"object": "x"}'})
    assert re.fullmatch(rf"{tmp_path}/openai/run-000000-[0-9a-f]{{4}}.jsonl", part.uri)
    assert (part.kind, part.num_rows) == ("openai", 1)
    assert (line["custom_id"], line["response"]["body"]) == ("a:0", {"object": "x"})


@pytest.mark.parametrize(
    ("failure", "custom_id"),
    [
        ({"id": "mine", "stage": "engine", "raw": "{}"}, "mine"),
        ({"id": "mine", "stage": "parse", "raw": '{"body": {"custom_id": "other"}}'}, "mine"),
        ({"stage": "parse", "raw": '{"custom_id": "a\\"\\u00fc", "body": "'}, 'a"ü'),
        ({"stage": "parse", "raw": '{"url": "x"'}, None),
        ({"stage": "decode", "raw": '{"custom_id" : "mine", "\ufffd'}, "mine"),
        ({"stage": "read", "raw": None}, None),
    ],
)
def test_a_failure_is_told_by_its_custom_id_if_it_has_one(write, failure, custom_id):
    _, (line,) = responses(write, failed(0) | failure)
    assert (line["custom_id"], line["response"], line["error"]["code"]) == (custom_id, None, "BadPrompt")


def test_a_task_ends_the_run_once_it_is_hopeless(write, near_board):
    near_board.board = Board(num_files=1, num_bytes=1, max_error_rate=0.0)
    near_board.board.file_read("a", 5000, 1)
    with pytest.raises(TooManyErrorsError, match="stopped early: 2 of 5,000 rows failed"):
        write(block(failed(0), failed(1)), board=near_board)


def test_a_task_tells_the_board_its_parts_and_a_few_first_answers(write, near_board):
    write(block(*(good(index) for index in range(12)), failed(12)), board=near_board)
    now = near_board.board.snapshot()
    assert (now.succeeded, now.failed, now.preview) == (
        12,
        1,
        [{"prompt": f"p{index}", "generated_text": "t"} for index in range(10)],
    )


def test_a_preview_is_cut(write, near_board):
    write(block(row(0, prompt="p" * 999, **ANSWER)), board=near_board)
    assert len(near_board.board.snapshot().preview[0]["prompt"]) == 200


def test_ray_data_is_asked_to_gather_rows_for_a_part():
    assert PartsDatasink(Layout("/out"), "run", 250, DATA).min_rows_per_write == 250


def test_a_part_without_rows_has_every_column(tmp_path):
    sink = PartsDatasink(Layout(str(tmp_path)), "run", 250, DATA)
    sink.write_empty()
    (part,) = sink.parts
    table = pq.read_table(part.uri)
    assert (part.kind, part.num_rows, part.num_rescued, table.num_rows) == ("data", 0, 0, 0)
    assert table.schema.equals(DATA)


def test_what_the_tasks_wrote_is_kept_in_the_end():
    sink = PartsDatasink(Layout("/out"), "run", 250, DATA)
    first, second = (Part(f"/out/{name}", "data", 1, 1, "", 0, 0) for name in "ab")
    returns = [("/r/1", Record([first.to_json()], {})), None, ("/r/2", Record([second.to_json()], {}))]
    sink.on_write_complete(SimpleNamespace(write_returns=returns))
    assert sink.parts == [first, second]
