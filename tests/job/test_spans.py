import random

import numpy as np
import pyarrow as pa
import pytest

from rayferry.job.errors import JobError
from rayferry.job.spans import Spans, spans_of, without


def table(*rows):
    return pa.table({"source_uri": [uri for uri, _ in rows], "position": pa.array([at for _, at in rows], pa.int64())})


def test_rows_that_follow_each_other_are_one_span():
    rows = [("s3://b/x", at) for at in (3, 0, 1, 2, 7)] + [("s3://b/y", 5)]
    assert spans_of(table(*rows)) == {"s3://b/x": [[0, 4], [7, 8]], "s3://b/y": [[5, 6]]}


def test_no_rows_are_no_spans():
    assert spans_of(table()) == {}


@pytest.mark.parametrize("seed", range(20))
def test_spans_hold_exactly_the_positions_they_were_made_of(seed):
    drawn = random.Random(seed)
    chosen = sorted(drawn.sample(range(200), drawn.randint(0, 200)))
    spans = Spans(spans_of(table(*(("x", at) for at in chosen))).get("x", []))
    assert (np.flatnonzero(spans.contain(range(-5, 210))) - 5).tolist() == chosen
    assert len(spans) == len(chosen)
    for start in range(-3, 203, 7):
        for stop in range(start + 1, 205, 11):
            assert spans.cover(start, stop) == all(at in chosen for at in range(start, stop))


def test_a_row_that_is_done_twice_is_refused():
    with pytest.raises(JobError, match=r"done twice.*--overwrite"):
        Spans([[0, 5], [4, 6]])


def test_rows_without_others_are_those_that_are_left():
    rows = {"x": [[0, 10], [20, 22]], "y": [[3, 5]], "z": [[0, 1]]}
    others = {"x": [[2, 3], [9, 10], [20, 21]], "y": [[3, 5]], "w": [[0, 9]]}
    assert without(rows, others) == {"x": [[0, 2], [3, 9], [21, 22]], "z": [[0, 1]]}
