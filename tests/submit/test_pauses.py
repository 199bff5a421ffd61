"""Pauses between questions."""

from itertools import islice

from rayferry.submit.pauses import growing_pauses


def test_pauses_grow_to_a_quarter_of_a_minute_and_differ():
    pauses = list(islice(growing_pauses(1.0), 10))
    assert 0.75 <= pauses[0] <= 1.25
    assert 11.25 <= pauses[-1] <= 18.75
    assert len(set(pauses)) == 10
