import pytest

from rayferry.job.calls import Call
from rayferry.job.line import Line, _ranks

DOCUMENTS = {name: name * 600 for name in "abc"}  # longer than the first depth
MANY = 100


def tokens_of(call):
    return (call.sampling or {}).get("max_tokens", 100)


def calls(*prompts, tokens=None):
    several = tokens or [None] * len(prompts)
    return [Call(one, sampling={"max_tokens": n} if n else None) for one, n in zip(prompts, several, strict=True)]


def take(line):
    one = line.next()
    line.drop()
    return one


def drained(line):
    return [take(line).call.prompt for _ in range(len(line))]


@pytest.fixture
def last():
    """A line that all calls come to at once, as few as they are."""
    return Line(tokens_of, MANY, all_here=True)


def test_without_lengths_calls_go_as_they_came():
    line = Line(None, MANY, all_here=True)
    line.add("x", calls("short", "long", tokens=[1, 9]))
    line.add("y", calls("middle", tokens=[5]))
    line.watch(0)
    assert drained(line) == ["short", "long", "middle"]


def test_a_call_comes_with_its_owner_its_number_and_its_sizes():
    line = Line(tokens_of)
    line.add("x", calls("a", "bb"))
    line.add("y", [Call([1, 2, 3])])
    found = [take(line) for _ in range(3)]
    assert [(one.owner, one.at) for one in found] == [("x", 0), ("x", 1), ("y", 0)]
    assert [(one.num_chars, one.tokens) for one in found] == [(1, 100), (2, 100), (12, 100)]


def test_the_longest_go_first_where_all_are_here(last):
    last.add("x", calls("short", "long", "middle", tokens=[1, 9, 5]))
    last.watch(0)
    assert (drained(last), last.is_by_length) == (["long", "middle", "short"], True)


def test_where_all_may_be_as_long_there_are_no_longest(last):
    last.add("x", calls("a", "b"))
    last.watch(0)
    assert (drained(last), last.is_by_length) == (["a", "b"], False)


def test_they_go_as_they_came_while_many_are_left():
    line = Line(tokens_of, 2, all_here=True)
    line.add("x", calls("1", "2", "9", "5", tokens=[1, 2, 9, 5]))
    line.watch(0)
    first = [take(line).call.prompt for _ in range(2)]
    line.watch(0)
    assert (first, drained(line)) == (["1", "2"], ["9", "5"])


def test_they_go_as_they_came_while_more_may_come():
    line = Line(tokens_of, MANY)
    line.add("x", calls("short", "long", tokens=[1, 9]))
    line.watch(0)
    assert drained(line) == ["short", "long"]


def test_prompts_that_begin_alike_go_together_before_the_others():
    line = Line(tokens_of)
    line.add("x", calls(*(DOCUMENTS[name] + text for name, text in ("a1", "b1", "c1", "a2", "b2")), "plain"))
    assert [prompt[-2:] for prompt in drained(line)] == ["a1", "a2", "b1", "b2", "c1", "in"]


def test_within_a_common_beginning_those_go_together_that_are_alike_for_longer():
    line = Line(tokens_of)
    line.add("x", calls(*("s" * 600 + document * 2000 + str(at) for at, document in enumerate("xyxyz"))))
    assert [prompt[-1] for prompt in drained(line)] == ["0", "2", "1", "3", "4"]


def test_what_begins_like_no_other_comes_last():
    assert _ranks([(1, 0, 0), (2, 0, 0), (1, 0, 0)]) == [[0, 3, 3], [3, 3, 3], [0, 3, 3]]


@pytest.mark.parametrize(
    "several",
    [
        pytest.param([Call([document] * 200) for document in (1, 2, 1)], id="token ids"),
        pytest.param(
            [Call("", messages=[{"role": "user", "content": text * 600}]) for text in "aba"], id="messages of text"
        ),
        pytest.param(
            [
                Call("", messages=[{"role": "user", "content": [{"type": "text", "text": text * 600}, {"image": "x"}]}])
                for text in "aba"
            ],
            id="messages of parts",
        ),
    ],
)
def test_token_ids_and_messages_have_beginnings_too(several):
    line = Line(tokens_of)
    line.add("x", several)
    assert [take(line).at for _ in range(3)] == [0, 2, 1]


def test_those_that_come_are_put_in_where_they_belong(last):
    last.add("x", calls("short", "middle", tokens=[1, 5]))
    last.watch(0)
    first = take(last).call.prompt
    last.add("y", calls("long", tokens=[9]))
    last.watch(1)
    assert [first, *drained(last)] == ["middle", "long", "short"]


def test_when_no_more_are_coming_those_left_go_longest_first_until_more_come():
    line = Line(tokens_of, MANY)
    line.add("x", calls(*"1295", tokens=[1, 2, 9, 5]))
    line.watch(num_running=0)
    taken = take(line).call.prompt + take(line).call.prompt
    line.watch(num_running=0)  # two of four are over, and nothing came
    first = line.next().call.prompt
    line.add("y", calls(*"34", tokens=[3, 4]))
    line.watch(num_running=0)
    assert (taken, first, drained(line)) == ("12", "9", ["9", "5", "3", "4"])


def test_calls_that_keep_coming_are_no_end():
    line = Line(tokens_of, MANY)
    for _ in range(5):
        line.add("x", calls(*"abcd", tokens=[1, 2, 3, 4]))
        line.watch(num_running=4)
        assert drained(line) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["a1", "a2", "b1"], True), (["a1", "a2"], False), (["a1", "b1"], False), ([], False)],
)
def test_more_are_waited_for_where_some_begin_alike_and_others_otherwise(last, texts, expected):
    last.add("x", calls(*(DOCUMENTS[text[0]] + text for text in texts)))
    assert last.gathers is expected
