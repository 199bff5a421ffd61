"""Calls that wait for the engine, and which of them it gets next."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from rayferry.job.calls import Call

# Characters at which beginnings are compared: those of a short system prompt, of some examples, of a whole document.
_DEPTHS = (512, 2048, 8192)
CHARS_PER_TOKEN = 4
# With less than this share of the calls that there were at most, no more are coming.
_RUNNING_DRY = 0.75

T = TypeVar("T")


class Waiting(NamedTuple, Generic[T]):
    """A call in the line.

    Attributes:
        owner: whose it is.
        at: its number among the owner's.
        call: what is asked.
        number: of its coming.
        num_chars: length of its prompt.
        tokens: the most that it may generate.
        beginnings: of its prompt, hashed, at each depth; 0 where it is no longer than that.
    """

    owner: T
    at: int
    call: Call
    number: int
    num_chars: int = 0
    tokens: int = 0
    beginnings: tuple[int, ...] = ()


class Line(Generic[T]):
    """A queue that is put in order again whenever something came.

    Prompts that begin alike go one after another, so that the engine finds their beginning in its prefix cache while it
    is still there. The others go as they came, until all that are left are here and few: then those that may need most
    tokens go first, as what runs last, alone, is short then. Nobody waits for ever: a replica gets no more rows than it
    may have at once, so those that others passed by are all that is left some time.
    """

    def __init__(self, tokens_of: Callable[[Call], int] | None, few: int = 0, *, all_here: bool = False) -> None:
        """Starts empty.

        Args:
            tokens_of: the most tokens that a call may generate; None: first come, first served.
            few: calls, of which the longest go first once no more are coming.
            all_here: the whole work comes at once.
        """
        self._tokens_of = tokens_of
        self._few = few
        self._all_here = all_here
        self._waiting: deque[Waiting[T]] = deque()
        self._is_sorted = True
        self._is_end = False
        self._is_by_length = False
        self._num_came = self._most = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, owner: T, calls: Sequence[Call]) -> None:
        """Puts calls in."""
        for index, call in enumerate(calls):
            self._num_came += 1
            if self._tokens_of is None:
                self._waiting.append(Waiting(owner, index, call, self._num_came))
                continue
            text = _text_of(call)
            beginnings = tuple(_beginning(text, depth) for depth in _DEPTHS)
            num_chars = len(text) if isinstance(text, str) else len(text) * CHARS_PER_TOKEN
            tokens = self._tokens_of(call)
            self._waiting.append(Waiting(owner, index, call, self._num_came, num_chars, tokens, beginnings))
        self._is_sorted = False

    def next(self) -> Waiting[T]:
        """The one whose turn it is."""
        if not self._is_sorted:
            self._sort()
        return self._waiting[0]

    def drop(self) -> None:
        """Takes that one out."""
        self._waiting.popleft()

    def watch(self, num_running: int) -> None:
        """Notes how many calls are here and with the engine, and so whether more are coming."""
        num = len(self) + num_running
        self._most = max(self._most, num)
        is_end = len(self) <= self._few and (self._all_here or num < _RUNNING_DRY * self._most)
        self._is_sorted = self._is_sorted and is_end == self._is_end
        self._is_end = is_end

    @property
    def is_by_length(self) -> bool:
        """True if the longest go first now, and there are longer ones."""
        return self._is_by_length

    @property
    def gathers(self) -> bool:
        """True if all come at once, and some begin alike, but not all."""
        groups = Counter(one.beginnings[0] for one in self._waiting if one.beginnings and one.beginnings[0])
        return self._all_here and len(groups) > 1 and max(groups.values()) > 1

    def _sort(self) -> None:
        self._is_sorted = True
        if self._tokens_of is None:
            return
        self._is_by_length = self._is_end and len({one.tokens for one in self._waiting}) > 1
        ranks = _ranks([one.beginnings for one in self._waiting])
        keys = {
            one.number: (rank, -one.tokens if self._is_end else 0, one.number)
            for one, rank in zip(self._waiting, ranks, strict=True)
        }
        self._waiting = deque(sorted(self._waiting, key=lambda one: keys[one.number]))


def _ranks(beginnings: list[tuple[int, ...]]) -> list[list[int]]:
    """Keys by which those that begin alike come together, and before all others, which have one key."""
    ranks: list[list[int]] = [[] for _ in beginnings]
    for depth in range(len(_DEPTHS)):
        found = Counter(one[depth] for one in beginnings)
        first: dict[int, int] = {}
        for at, one in enumerate(beginnings):
            is_shared = one[depth] and found[one[depth]] > 1
            ranks[at].append(first.setdefault(one[depth], at) if is_shared else len(beginnings))
    return ranks


def _text_of(call: Call) -> str | list[int]:
    """What a prompt begins with: its text, its token ids, or the text of its messages."""
    if call.messages is None:
        return call.prompt
    contents = [message.get("content") for message in call.messages]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts if part)


def _beginning(text: str | list[int], depth: int) -> int:
    if not isinstance(text, str):
        depth //= CHARS_PER_TOKEN
    part: Hashable = text[:depth] if isinstance(text, str) else tuple(text[:depth])
    return hash(part) if len(text) > depth else 0
