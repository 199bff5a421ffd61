"""Files to start from: a job file, and prompts for the demo."""

from importlib import resources


def starter_text(name: str) -> str:
    """The text of a starter file."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
