"""Writes a table of docs/reliability.md from what runs left in the file of CHAOS_RESULTS.

python tests/chaos/report.py results.jsonl docs/reliability.md NAME      between its marks, such as <!-- NAME: begin -->
"""

import json
import sys
from pathlib import Path

HEADER = """| fault | runs | with a second fault | rows | attempts: 1 | 2 | 3 or more | lost | twice | not exact |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def line(name, runs):
    """A row of the table."""
    attempts = [run["attempts"] for run in runs]
    cells = [
        name,
        len(runs),
        sum(bool(run["further"]) for run in runs),
        f"{sum(run['rows'] for run in runs):,}",
        attempts.count(1),
        attempts.count(2),
        sum(number > 2 for number in attempts),
        sum(len(run["defects"].get("lost", ())) for run in runs),
        sum(len(run["defects"].get("twice", ())) for run in runs),
        sum(bool(run["defects"]) for run in runs),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def table(runs):
    """All of it."""
    faults = sorted({run["fault"] for run in runs})
    lines = [line(fault, [run for run in runs if run["fault"] == fault]) for fault in faults]
    seeds = ", ".join(str(run["seed"]) for run in sorted(runs, key=lambda run: run["seed"]))
    s3_faults = sum(sum(run["s3_faults"].values()) for run in runs)
    told = f"Seeds: {seeds}. The proxy made {s3_faults:,} requests to S3 go wrong."
    return "\n".join([HEADER, *lines, line("all", runs), "", told])


if __name__ == "__main__":
    results, page = map(Path, sys.argv[1:3])
    begin, end = (f"<!-- {sys.argv[3]}: {word} -->" for word in ("begin", "end"))
    text = page.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    runs = [json.loads(found) for found in results.read_text().splitlines()]
    page.write_text(f"{before}{begin}\n\n{table(runs)}\n\n{end}{after}")
