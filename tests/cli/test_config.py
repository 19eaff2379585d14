"""Options from dataclasses, and files that hold what flags hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sedaq.aq.tuning.settings import TuneConfig
from sedaq.cli.config import config_options, described_fields
from sedaq.cli.main import VERBS, cli, main
from sedaq.models.sampling import SamplingConfig
from sedaq.search.config import Budget, SearchConfig
from sedaq.sensitivity.settings import Settings


@dataclass(frozen=True)
class Sample:
    """Of everything.

    Args:
        height, width: sides of
            an image.
        names: some.
        ratio: a number.
        flag: or not.

    Raises:
        nothing: at all.
    """

    height: int | None = None
    width: int = 3
    names: tuple[str, ...] = ()
    ratio: float | None = None
    flag: bool = False


def run(*words: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @click.command()
    @config_options(Sample, "sample", prefix="my_", ratio="share")
    def command(sample: dict[str, Any]) -> None:
        seen.update(sample)

    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    return seen


def test_what_is_given_is_handed_on_under_the_fields_names() -> None:
    assert run() == {}
    assert run("--my-height", "2", "--my-names", "a", "--my-names", "b,c", "--my-share", "0.5", "--my-flag") == {
        "height": 2,
        "names": ("a", "b", "c"),
        "ratio": 0.5,
        "flag": True,
    }


def test_help_is_the_docstring_s() -> None:
    described = described_fields(Sample)
    assert described["width"] == described["height"] == "Sides of an image."
    assert "nothing" not in described


@pytest.mark.parametrize("config", [Budget, SearchConfig, SamplingConfig, Settings, TuneConfig])
def test_every_field_is_described(config) -> None:
    assert set(described_fields(config)) == {field.name for field in fields(config)}


# -- files -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch) -> dict[str, Any]:
    """What `sedaq search` would search."""
    import sedaq.api

    found: dict[str, Any] = {}

    class Run:
        def __init__(self, folder, **how) -> None:
            found.update(folder=str(folder), **how)

        def search(self, budget, out=None, **config) -> None:
            found.update(budget=budget, out=out, config=config)
            raise sedaq.InputError("far enough")

    monkeypatch.setattr(sedaq.api, "Run", Run)
    return found


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "run.toml").write_text(text)
    return str(tmp_path / "run.toml")


def test_a_file_holds_what_flags_hold_and_the_command_line_wins(tmp_path, seen, capsys) -> None:
    text = """
        run = "runs/dit"
        configs = 12            # of another verb
        workers = 2
        bits = 2.5

        [search]
        keep = ["a*", "b"]
        min-rate = 1.5
        pin = { "proj_out*" = "int8" }
        verify = 4

        [apply]
        tune_steps = 3
    """
    assert main(["search", "--config", written(tmp_path, text), "--bits", "2"]) == 2
    assert capsys.readouterr().err == "sedaq: far enough\n"
    assert seen["folder"] == "runs/dit" and seen["executor"] == "processes:2" and seen["budget"] == Budget(bits=2.0)
    assert seen["config"] == {"keep": ("a*", "b"), "min_rate": 1.5, "pin": {"proj_out*": "int8"}, "verify": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", "no verb has a flag for the key 'stepz'"),
        ("[search]\nstepz = 3", "search has no flag for the key 'stepz'"),
        ("[apply]\nstepz = 3", "apply has no flag for the key 'stepz'"),
        ("[search]\ntuned_steps = 3", "search has no flag for the key 'tuned_steps'"),
        ("[serch]\nbits = 3", "no verb has a flag for the key 'serch'"),
        ("bits = ", "not valid TOML"),
        ("bits = " + "9" * 5000, "not valid TOML"),
        ("bits = " + "[" * 50_000, "not valid TOML"),
        ("bits = 'many'", "'many' is not a valid float"),
        ("bits = [2, 3]", "bits takes one value, not a list"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, said, capsys) -> None:
    assert main(["search", "--run", "r", "--config", written(tmp_path, text)]) == 2
    message = capsys.readouterr().err
    assert said in message and len(message.splitlines()) == 1


def test_a_missing_file_is_named(capsys) -> None:
    assert main(["search", "--run", "r", "--config", "absent.toml"]) == 2
    assert "--config absent.toml: cannot be read" in capsys.readouterr().err


def test_every_verb_takes_one() -> None:
    context = click.Context(cli)
    for verb in VERBS:
        command = cli.get_command(context, verb)
        commands = command.commands.values() if isinstance(command, click.Group) else [command]
        assert all(any("--config" in option.opts for option in one.params) for one in commands)


def test_values_are_taken_as_on_the_command_line(tmp_path, seen) -> None:
    """A number for a path, one text for a flag that may be repeated, and a byte order mark before it all."""
    assert main(["search", "--config", written(tmp_path, '\ufeffrun = 5\nkeep = "pos_embed*"\nbits = 3\n')]) == 2
    assert seen["folder"] == "5" and seen["config"]["keep"] == ("pos_embed*",) and seen["budget"] == Budget(bits=3.0)
