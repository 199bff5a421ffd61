"""What people see: lines on stderr, the datum on stdout, tables where there are rows."""

import io
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rayferry.job.log import counted
from rayferry.submit.streams import datum, note

__all__ = ["clock", "datum", "json_datum", "left_out", "note", "summary", "table"]

_MAX_CELL = 300
_WIDTH = 400
_MAX_LEFT_OUT = 20


def left_out(package: dict[str, Any]) -> None:
    """Which of the user's files stay at home; `package` as a request describes it."""
    several = package["left_out"]
    for one in several[:_MAX_LEFT_OUT]:
        note(f"left out: {_visible(one['name'])}: {one['reason']}")
    if len(several) > _MAX_LEFT_OUT:
        note(f"left out: {len(several) - _MAX_LEFT_OUT:,} more; see: rayferry submit --dry-run")


def json_datum(value: object) -> None:
    """The same, as JSON."""
    datum(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, to_stderr: bool = False) -> None:
    """Prints rows under headings, folded to the terminal's width; values are never read as markup."""
    from rich.console import Console  # noqa: PLC0415  # a scheduler on a cluster draws none, and may be without it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(*columns, show_lines=False, header_style="bold")
    for row in rows:
        drawn.add_row(*(Text(_visible("" if cell is None else cell), overflow="fold") for cell in row))
    there, text = Console(stderr=to_stderr), io.StringIO()
    # a script's grep must not meet a folded id
    width = there.width if there.is_terminal else _WIDTH
    Console(file=text, width=width, force_terminal=there.is_terminal, highlight=False).print(drawn)
    (note if to_stderr else datum)(text.getvalue().rstrip("\n"))


def _visible(cell: object) -> str:
    """A cell without what a terminal would take for a command."""
    text = str(cell)[:_MAX_CELL]
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def summary(manifest: dict[str, Any]) -> str:
    """A finished run in one line."""
    counts, seconds = manifest["counts"], manifest["seconds"]["total"]
    data = sum(part["kind"] == "data" for part in manifest["parts"])
    line = f"{counted(counts['total'], 'row')}: {counts['succeeded']:,} answered in {counted(data, 'part')}"
    line += f", {counts['failed']:,} failed"
    line += f"; {manifest['tokens']['generated']:,} tokens generated, {seconds:,.0f} s"
    return line


def clock(milliseconds: int | None) -> str:
    """A time of Ray's in this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000)) if milliseconds else ""
