"""Commands in the documentation exist: every verb, and every option that an example gives it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from sedaq.cli.main import VERBS, cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def find_commands(path: Path) -> list[list[str]]:
    """The words of every line of code that starts with `sedaq`; what a command printed is none, though a row of its table may start so."""
    written = re.sub(r"<!-- = .*?<!-- end -->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = re.findall(r"^ +sedaq (.+)$", written, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, subcommands included, and the words behind its name."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found, f"there is no {words[0]}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("path", [path for path in PAGES if find_commands(path)], ids=lambda path: path.name)
def test_commands_in_the_documentation_exist(path: Path) -> None:
    for words in find_commands(path):
        command, rest = find_command(words)
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert given <= known, f"{path.name}: sedaq {' '.join(words)}"


def test_the_page_of_verbs_has_an_example_of_each() -> None:
    assert {words[0] for words in find_commands(ROOT / "docs/verbs.md")} == set(VERBS)
