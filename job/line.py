"""Calls that wait for the engine, and which of them it gets next."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from rayferry.job.calls import Call

# Characters at which beginnings are compared: those of a short system prompt, of some examples, of a whole document.
_DEPTHS = (512, 2048, 8192)
_CHARS_PER_TOKEN = 4
# With less than this share of the calls that there were at most, no more are coming.
_RUNNING_DRY = 0.75

T = TypeVar("T")


class Line(Generic[T]):
    """A queue that is put in order again whenever something came.

    Prompts that begin alike go one after another, so that the engine finds their beginning in its prefix cache while it
    is still there. The others go as they came, until all that are left are here: then those that may need most tokens
    go first, as what runs last, alone, is short then. Nobody waits for ever: a replica gets no more rows than it may
    have at once, so those that others passed by are all that is left some time.

    Attributes:
        longest_first: the calls that are here, and will come, are the last ones.
    """

    def __init__(self, tokens_of: Callable[[Call], int] | None, *, longest_first: bool = False) -> None:
        """Starts empty.

        Args:
            tokens_of: the most tokens that a call may generate; None: first come, first served.
            longest_first: the whole work fits into the line.
        """
        self.longest_first = longest_first
        self._tokens_of = tokens_of
        self._waiting: deque[tuple[T, int, Call]] = deque()
        self._is_sorted = True
        self._most = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, owner: T, calls: Sequence[Call]) -> None:
        """Puts calls in; `take` gives each with its owner and its number."""
        self._waiting.extend((owner, index, call) for index, call in enumerate(calls))
        self._is_sorted = False

    def take(self) -> tuple[T, int, Call]:
        """The next one."""
        if not self._is_sorted:
            self._sort()
        return self._waiting.popleft()

    def put_back(self, one: tuple[T, int, Call]) -> None:
        """Makes one that was taken the next one again."""
        self._waiting.appendleft(one)

    def watch(self, num_running: int) -> None:
        """Notes how many calls are here and with the engine; sorts them anew if no more are coming."""
        num = len(self) + num_running
        self._most = max(self._most, num)
        if not self.longest_first and self._tokens_of is not None and num < _RUNNING_DRY * self._most:
            self.longest_first = True
            self._is_sorted = False

    def has_alike(self) -> bool:
        """True if some of those that wait begin alike."""
        if self._tokens_of is None:
            return False
        calls = [call for _, _, call in self._waiting]
        return any(rank[0] < len(calls) for rank in ranks_of(calls))

    def owners(self) -> Iterable[T]:
        """Whose calls wait."""
        return (owner for owner, _, _ in tuple(self._waiting))

    def _sort(self) -> None:
        self._is_sorted = True
        if self._tokens_of is None:
            return
        several = list(self._waiting)
        lengths = [-self._tokens_of(call) if self.longest_first else 0 for _, _, call in several]
        ranks = ranks_of([call for _, _, call in several])
        order = sorted(range(len(several)), key=lambda at: (ranks[at], lengths[at]))
        self._waiting = deque(several[at] for at in order)


def ranks_of(calls: Sequence[Call]) -> list[list[int]]:
    """Keys by which calls that begin alike come together, and before all others, which have one key."""
    beginnings = [_beginnings(call) for call in calls]
    ranks: list[list[int]] = [[] for _ in calls]
    for depth in range(len(_DEPTHS)):
        found = Counter(one[depth] for one in beginnings)
        first: dict[str | tuple[int, ...], int] = {}
        for at, one in enumerate(beginnings):
            is_shared = one[depth] and found[one[depth]] > 1
            ranks[at].append(first.setdefault(one[depth], at) if is_shared else len(calls))
    return ranks


def text_of(call: Call) -> str | list[int]:
    """What a prompt begins with: its text, its token ids, or what its messages say."""
    if call.messages is None:
        return call.prompt
    return "".join(str(message.get("content")) for message in call.messages)


def _beginnings(call: Call) -> list[str | tuple[int, ...]]:
    """The beginning at each depth; empty where the prompt is no longer than that."""
    text = text_of(call)
    if isinstance(text, str):
        return [text[:depth] if len(text) > depth else "" for depth in _DEPTHS]
    depths = [depth // _CHARS_PER_TOKEN for depth in _DEPTHS]
    return [tuple(text[:depth]) if len(text) > depth else () for depth in depths]
