"""`rayferry doctor`: what is set up here, and what is wrong with it."""

import sys

import click

from rayferry.submit.cli_shared import Flags, address_of, address_option, json_option


@click.command()
@address_option
@json_option
def doctor(address: Flags, as_json: bool) -> None:
    """Tell what is set up here, what is wrong with it, and how to mend that."""
    from dataclasses import asdict

    from rayferry.job.log import counted
    from rayferry.submit import report
    from rayferry.submit.doctor import examine, page

    findings = examine(lambda: address_of(address))
    problems = sum(finding.outcome == "problem" for finding in findings)
    if as_json:
        report.json_datum({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        for line in page(findings):
            report.datum(line)
    report.note(counted(problems, "problem") if problems else "nothing is wrong with what is set up here")
    sys.exit(problems > 0)


COMMANDS = (doctor,)
