"""What becomes of what an earlier attempt left in the output, as one value from the laptop to the run."""

import argparse
import re
import secrets
from dataclasses import dataclass

from rayferry.job.errors import SpecError


def attempt_id(run: str, number: int) -> str:
    """The submission id of a run's first, second, … attempt."""
    return run if number == 1 else f"{run[:120]}-a{number}"


def attempt_number(submission_id: str, run: str) -> int | None:
    """Which of a run's attempts has that id, by the id of the first one; None if none can have."""
    found = re.fullmatch(re.escape(run[:120]) + r"-a(\d+)", submission_id)
    return 1 if submission_id == run else int(found[1]) if found else None


def new_run(submission_id: str) -> str:
    """A name for a run that no other has, even of one whose first attempt had the same id."""
    return f"{submission_id}/{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Earlier:
    """What becomes of what the output holds of an earlier attempt.

    Attributes:
        resume: go on with it.
        new_input: files that came since are answered too.
        retry_failed: the rows in errors/ are tried again.
        overwrite: remove it.
        instead: the run to remove, by `identity.name_of`, "" for none; None: it is not known which was there.
        over: the attempts that are known to be over.
        run: the run's name, by `new_run`.
        later: it is not the run's first attempt: what one of them began is gone on with, whatever else is said.
    """

    resume: bool = False
    new_input: bool = False
    retry_failed: bool = False
    overwrite: bool = False
    instead: str | None = None
    over: tuple[str, ...] = ()
    run: str | None = None
    later: bool = False

    def __post_init__(self) -> None:
        """Refuses what says two things.

        Raises:
            SpecError: naming the flags.
        """
        if self.overwrite and (self.resume or self.retry_failed):
            flag = "--retry-failed" if self.retry_failed else "--resume"
            msg = f"{flag} goes on with what is there, --overwrite removes it: give one of them"
            raise SpecError(msg)
        if self.retry_failed:
            object.__setattr__(self, "resume", True)  # trying again is a way to resume
        if self.new_input and not self.resume:
            msg = "--new-input says how to resume: give --resume too"
            raise SpecError(msg)

    @property
    def may_hold(self) -> bool:
        """True if the output need not be empty."""
        return self.resume or self.overwrite or self.later

    @property
    def goes_on(self) -> bool:
        """True if there is something to go on with, as far as is known."""
        return self.resume or self.later

    @property
    def first(self) -> str | None:
        """The submission id of the run's first attempt."""
        return self.run.rpartition("/")[0] if self.run is not None else None

    @property
    def words(self) -> list[str]:
        """As the entrypoint takes it; `read` is the way back."""
        flags = {
            "--resume": self.resume,
            "--new-input": self.new_input,
            "--retry-failed": self.retry_failed,
            "--overwrite": self.overwrite,
            "--later": self.later,
        }
        over = [word for name in self.over for word in ("--over", name)]
        named = {"--run": self.run, "--instead": self.instead}
        names = [word for flag, name in named.items() if name is not None for word in (flag, name)]
        return [*(flag for flag, is_set in flags.items() if is_set), *over, *names]

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Gives the entrypoint's parser these words."""
        for flag in ("--resume", "--new-input", "--retry-failed", "--overwrite", "--later"):
            parser.add_argument(flag, action="store_true")
        parser.add_argument("--over", action="append", default=[])
        parser.add_argument("--run")
        parser.add_argument("--instead")

    @classmethod
    def read(cls, options: argparse.Namespace) -> "Earlier":
        """What such a parser found."""
        return cls(
            resume=options.resume,
            new_input=options.new_input,
            retry_failed=options.retry_failed,
            overwrite=options.overwrite,
            instead=options.instead,
            over=tuple(options.over),
            run=options.run,
            later=options.later,
        )


NOTHING_EARLIER = Earlier()
