import pytest

from rayferry.job.budget import Budget
from rayferry.job.tally import Tally

LEAST = 64  # which it always lets in


@pytest.fixture
def fill():
    """As many calls of so many characters and tokens as there is room for."""

    def fill(budget, chars, tokens, *, whole=True, limit=10_000):
        number = 0
        while number < limit and budget.has_room(chars, tokens, whole=whole):
            budget.reserve(f"{number}-{chars}", chars, tokens)
            number += 1
        return number

    return fill


def test_no_more_than_there_is_room_for(fill):
    assert fill(Budget(100, None, Tally()), 4, 1) == 100


def test_whole_answers_have_to_fit_into_the_cache(fill):
    assert fill(Budget(1000, 10_000, Tally()), 40, 90) == 110  # 100 tokens each, and a tenth more


def test_prompts_alone_are_left_to_vllm(fill):
    assert fill(Budget(1000, 10_000, Tally()), 40, 90, whole=False) == 1000


def test_some_are_let_in_however_long_they_may_get(fill):
    assert fill(Budget(1000, 10_000, Tally()), 40, 100_000) == LEAST


def test_what_is_over_makes_room():
    budget = Budget(1000, 100, Tally())
    calls = [f"{at}" for at in range(LEAST)]
    for name in calls:
        budget.reserve(name, 4, 1)
    assert not budget.has_room(4, 1, whole=True)
    budget.give_back("0")
    assert budget.has_room(4, 1, whole=True)


def tally(**counts):
    return Tally(num_answered=100, **counts)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param({"num_input_tokens": 1000, "num_generated_tokens": 9000}, 110, id="as long as they may be"),
        pytest.param({"num_input_tokens": 1000, "num_generated_tokens": 4000}, 220, id="shorter answers"),
        pytest.param(
            {"num_input_tokens": 1000, "num_cached_tokens": 1000, "num_generated_tokens": 4000},
            275,
            id="cached prompts",
        ),
        pytest.param({"num_input_tokens": 11000, "num_generated_tokens": 9000}, LEAST, id="longer prompts"),
    ],
)
def test_what_a_call_takes_is_learned_from_those_that_are_over(fill, counts, expected):
    its = Tally()
    budget = Budget(1000, 10_000, its)
    for at in range(100):  # 40 characters and at most 90 tokens each
        budget.reserve(f"over {at}", 40, 90)
        budget.give_back(f"over {at}")
    vars(its).update(vars(tally(**counts)))
    assert fill(budget, 40, 90) == expected
