"""How many calls an engine may have at once: no more than run together, nor than its KV cache holds to their end."""

from rayferry.job.line import CHARS_PER_TOKEN
from rayferry.job.tally import Tally

# Rather a few more: while one is too many, another ends before its time.
_OVERBOOKED = 1.1
_LEAST_TOGETHER = 64
_ENOUGH_ANSWERED = 64


class Budget:
    """Reserves room in the KV cache for whole answers.

    An engine that is given the longest answers first starts as many as find room for their prompts, and has to throw
    most of them out, and begin them anew, as they grow. Given what finds room to its end, it does not. What a call will
    take is what it may take at most, times what those that are over have taken of theirs.
    """

    def __init__(self, room: int, cache_tokens: int | None, tally: Tally) -> None:
        """Starts with nothing reserved.

        Args:
            room: most calls at once.
            cache_tokens: what the KV cache holds; None if that is not known.
            tally: of the engine's answers.
        """
        self._room = room
        self._cache_tokens = cache_tokens
        self._tally = tally
        self._reserved: dict[str, tuple[float, int, int]] = {}
        self._sum = 0.0
        self._num_chars = self._most_tokens = 0

    def has_room(self, num_chars: int, tokens: int, *, whole: bool) -> bool:
        """True if the engine may have one call more.

        Args:
            num_chars: length of its prompt.
            tokens: the most that it may generate.
            whole: it needs room up to its end; else vLLM sees to that.
        """
        if len(self._reserved) >= self._room:
            return False
        if not whole or self._cache_tokens is None or len(self._reserved) < _LEAST_TOGETHER:
            return True
        return self._sum + self._size(num_chars, tokens) <= _OVERBOOKED * self._cache_tokens

    def reserve(self, name: str, num_chars: int, tokens: int) -> None:
        """The engine has this call now, by this name."""
        size = self._size(num_chars, tokens)
        self._reserved[name] = (size, num_chars, tokens)
        self._sum += size

    def give_back(self, name: str) -> None:
        """The call is over."""
        size, num_chars, tokens = self._reserved.pop(name)
        self._sum -= size
        self._num_chars += num_chars
        self._most_tokens += tokens

    def _size(self, num_chars: int, tokens: int) -> float:
        """Tokens of the KV cache; those of a prompt that others have begun alike are there already."""
        its = self._tally
        if its.num_answered < _ENOUGH_ANSWERED:
            return num_chars / CHARS_PER_TOKEN + tokens
        prompt = num_chars * (its.num_input_tokens - its.num_cached_tokens) / max(1, self._num_chars)
        return prompt + tokens * its.num_generated_tokens / max(1, self._most_tokens)
