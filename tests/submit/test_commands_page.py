"""docs/commands.md says of every command what the command says of itself."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rayferry.submit.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


def commands(command=main, words=("rayferry",)):
    """Every command by its words, groups among them."""
    yield " ".join(words), command
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from commands(child, (*words, name))


def options_of(command):
    """An option's every spelling; --help is every command's, and is not told of each."""
    return {
        name for one in command.params if isinstance(one, click.Option) for name in (*one.opts, *one.secondary_opts)
    }


COMMANDS = dict(commands())
_, *_parts = HEADING.split(PAGE)
SECTIONS = {"rayferry": PAGE[: HEADING.search(PAGE).start()], **dict(zip(_parts[::2], _parts[1::2], strict=True))}
HELPS = {
    words: block
    for words, text in SECTIONS.items()
    for block in re.findall(r"```text\n(Usage: .*?)```", text, re.DOTALL)
}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_a_section(words):
    assert words in SECTIONS


def test_no_section_is_of_a_command_that_does_not_exist():
    assert {words for words in SECTIONS if words.startswith("rayferry")} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_is_named_in_its_commands_section(words):
    assert options_of(COMMANDS[words]) - set(OPTION.findall(SECTIONS[words])) == set()


def test_no_option_is_named_that_does_not_exist():
    known = set().union({"--help", "-h"}, *map(options_of, COMMANDS.values()))
    assert set(OPTION.findall(PAGE)) - known == set()


@pytest.mark.parametrize("words", HELPS)
def test_a_help_text_on_the_page_is_what_the_command_prints(words):
    arguments = [*words.split()[1:], "--help"]
    shown = CliRunner().invoke(main, arguments, prog_name="rayferry", terminal_width=98).output
    assert HELPS[words] == shown


def test_every_command_that_is_not_of_the_local_stack_has_its_help_text_on_the_page():
    assert {words for words in COMMANDS if not words.startswith("rayferry local ")} == set(HELPS)
