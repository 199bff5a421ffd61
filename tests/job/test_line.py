import pytest

from rayferry.job.calls import Call
from rayferry.job.line import Line, ranks_of

DOCUMENTS = {name: name * 600 for name in "abc"}  # longer than the first depth


def tokens_of(call):
    return (call.sampling or {}).get("max_tokens", 100)


def calls(*prompts, tokens=None):
    several = tokens or [None] * len(prompts)
    return [Call(one, sampling={"max_tokens": n} if n else None) for one, n in zip(prompts, several, strict=True)]


def drained(line):
    return [line.take()[2].prompt for _ in range(len(line))]


@pytest.mark.parametrize("longest_first", [False, True])
def test_without_lengths_calls_go_as_they_came(longest_first):
    line = Line(None, longest_first=longest_first)
    line.add("x", calls("short", "long", tokens=[1, 9]))
    line.add("y", calls("middle", tokens=[5]))
    assert drained(line) == ["short", "long", "middle"]


def test_a_call_comes_with_its_owner_and_number():
    line = Line(tokens_of)
    line.add("x", calls("a", "b"))
    line.add("y", calls("c"))
    assert [line.take()[:2] for _ in range(3)] == [("x", 0), ("x", 1), ("y", 0)]


def test_the_longest_go_first_where_all_are_here():
    line = Line(tokens_of, longest_first=True)
    line.add("x", calls("short", "long", "middle", tokens=[1, 9, 5]))
    assert drained(line) == ["long", "middle", "short"]


def test_they_go_as_they_came_while_more_may_come():
    line = Line(tokens_of)
    line.add("x", calls("short", "long", tokens=[1, 9]))
    assert drained(line) == ["short", "long"]


def test_prompts_that_begin_alike_go_together_before_the_others():
    line = Line(tokens_of)
    line.add("x", calls(*(DOCUMENTS[name] + text for name, text in ("a1", "b1", "c1", "a2", "b2")), "plain"))
    assert [prompt[-2:] for prompt in drained(line)] == ["a1", "a2", "b1", "b2", "c1", "in"]


def test_within_a_common_beginning_those_go_together_that_are_alike_for_longer():
    common = "s" * 600
    texts = [common + document * 2000 + str(at) for at, document in enumerate("xyxyz")]
    order = sorted(range(5), key=lambda at: ranks_of(calls(*texts))[at])
    assert order == [0, 2, 1, 3, 4]


def test_token_ids_and_messages_have_beginnings_too():
    ids = [Call([document] * 200) for document in (1, 2, 1)]
    chats = [Call("", messages=[{"role": "user", "content": document * 600}]) for document in "aba"]
    for several in (ids, chats):
        assert sorted(range(3), key=lambda at: ranks_of(several)[at]) == [0, 2, 1]


def test_those_that_come_are_put_in_where_they_belong():
    line = Line(tokens_of, longest_first=True)
    line.add("x", calls("short", "middle", tokens=[1, 5]))
    first = line.take()[2].prompt
    line.add("y", calls("long", tokens=[9]))
    assert [first, *drained(line)] == ["middle", "long", "short"]


def test_what_is_put_back_is_the_next_one():
    line = Line(tokens_of)
    line.add("x", calls("a", "b"))
    line.put_back(line.take())
    assert drained(line) == ["a", "b"]


def test_when_no_more_are_coming_those_left_go_longest_first():
    line = Line(tokens_of)
    line.add("x", calls("1", "2", "9", "5", tokens=[1, 2, 9, 5]))
    line.watch(num_running=0)
    taken = line.take()[2].prompt
    line.watch(num_running=1)
    assert not line.longest_first
    line.take()
    line.watch(num_running=0)  # two of four are over, and nothing came
    assert (taken, line.longest_first, drained(line)) == ("1", True, ["9", "5"])


def test_calls_that_keep_coming_are_no_end():
    line = Line(tokens_of)
    for _ in range(5):
        line.add("x", calls("a", "b", "c", "d"))
        line.watch(num_running=4)
        drained(line)
    assert not line.longest_first


def test_those_who_wait_are_known():
    line = Line(tokens_of)
    line.add("x", calls("a", "b"))
    line.take()
    line.add("y", calls("c"))
    assert set(line.owners()) == {"x", "y"}


@pytest.mark.parametrize(("texts", "expected"), [(["a1", "a2"], True), (["a1", "b1"], False), ([], False)])
def test_it_is_known_whether_some_begin_alike(texts, expected):
    line = Line(tokens_of)
    line.add("x", calls(*(DOCUMENTS[text[0]] + text for text in texts)))
    assert line.has_alike() is expected
