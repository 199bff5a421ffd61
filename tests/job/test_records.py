import pytest

from rayferry.job.records import distinct, is_store_failure


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_2", "a_3"]),
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
        (["", "a", ""], ["column_1", "a", "column_3"]),
        (["column_2", ""], ["column_2", "column_2_2"]),
    ],
)
def test_column_names_are_made_distinct(names, found):
    assert distinct(names) == found


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError("Truncated compressed stream"), False),
        (OSError(5, "Input/output error"), True),
        (OSError("AWS Error ACCESS_DENIED"), True),
        (ValueError("AWS Error"), False),
    ],
)
def test_a_store_failure_is_told_from_a_broken_file(error, is_one):
    assert is_store_failure(error) is is_one
