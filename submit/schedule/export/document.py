"""What an export makes: texts of files, and what a person should know of them."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

_FOLDED = re.compile("[\x85\u2028\u2029\ufeff]")  # what YAML takes for an end of line, or skips


@dataclass(frozen=True)
class Export:
    """What one export makes.

    Attributes:
        files: name to text, in the order in which they are to be read.
        notes: what the other system does otherwise than Rayferry's own scheduler, and what is left to do.
    """

    files: dict[str, str]
    notes: tuple[str, ...] = ()


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and lists set in below their keys."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _FOLDED.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(value: Any) -> str:
    """A value as YAML that a person may edit; texts come back as they were."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def commented(lines: tuple[str, ...]) -> str:
    """Lines as comments of shells, units, YAML and Python alike; a line stays one, whatever is in it."""
    return "".join(f"# {' '.join(line.split())}".rstrip() + "\n" for line in lines)
