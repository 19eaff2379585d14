"""Options that several verbs share, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

SUBJECT_HELP = "SUBJECT is a shipped name (mnist-dit, mnist-unet), a diffusers folder, a hub id, or FILE.py:FUNCTION."

run_folder = click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
device = click.option("--device", default="cpu", show_default=True, help="torch device.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
exclude = click.option("--exclude", multiple=True, metavar="GLOB", help="Leave layers alone whose path matches; may be repeated.")
guidance = click.option("--guidance", type=float, default=None, help="Weight of classifier-free guidance.")
batch_size = click.option(
    "--batch-size", type=click.IntRange(1), default=None, help="Images sampled at once; the sampler's own by default."
)
prompts = click.option(
    "--prompts", type=click.Path(), default=None, metavar="FILE", help="One prompt a line, for pipelines that take prompts."
)
extractor = click.option(
    "--extractor", default=None, help="embedded, inception[:FILE] or transformers:FOLDER; the subject's own by default."
)
reference = click.option("--reference", type=click.Path(), default=None, help="Folder of images, .npz, or statistics file to compare with.")


def executor(workers: int) -> str:
    """Where the work of so many processes runs."""
    return "serial" if workers == 1 else f"processes:{workers}"


def activations(function: F) -> F:
    """--activations and what belongs to it."""
    return together(
        click.option(
            "--activations",
            type=click.Choice(["8", "6"]),
            default=None,
            callback=lambda context, parameter, value: None if value is None else int(value),
            help="Round the inputs of layers to so many bits, but for those that measure most sensitive (5 % of the multiply-adds at most).",
        ),
        click.option(
            "--activation-schemes",
            default=None,
            metavar="NAMES",
            help="Which schemes layers choose from, with commas: token (8 bits of it run on 8-bit kernels), token-affine, step, step-affine; all by default.",
        ),
    )(function)


def schemes(bits: int | None, text: str | None) -> list[str] | None:
    """What --activation-schemes names."""
    if text is None:
        return None
    if bits is None:
        raise InputError("--activation-schemes: they are for --activations; give it, too")
    return [name.strip() for name in text.split(",")]


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Apply several options as one decorator."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
