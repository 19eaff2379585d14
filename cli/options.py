"""Options that several verbs share, and how a result is printed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .config import ConfigOption, texts

F = TypeVar("F", bound=Callable[..., Any])

SUBJECT_HELP = (
    "SUBJECT is a shipped name (mnist-dit, mnist-unet, digits-sd, digits-mmdit), a diffusers folder, a hub id, "
    "FILE.safetensors:FOLDER (a checkpoint, and a folder with the configs of its kind), or FILE.py:FUNCTION."
)


class RunFolder(click.ParamType):
    """A folder, or a URL such as s3://bucket/run: then the folder in which it is worked on."""

    name = "folder or URL"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        from ..storage import local_folder

        return local_folder(value)


def named(folder: Path) -> str:
    """What a run's folder is called on the command line."""
    from ..remote import url_of

    return url_of(folder) or str(folder)


RUN_HELP = "Folder of the run, or its URL, such as s3://bucket/run."
run_folder = click.option("--run", "run_folder", type=RunFolder(), required=True, help=RUN_HELP)
run_subject = click.option(
    "--subject",
    "run_subject",
    default=None,
    metavar="SUBJECT",
    help="The run's model, where it is code of your own (FILE.py:FUNCTION), of the hub, or lies elsewhere now.",
)
seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
device = click.option("--device", default="cpu", show_default=True, help="torch device.")
goal = click.option(
    "--for",
    "goal",
    cls=ConfigOption,
    field="tuned",
    type=click.Choice(["untuned", "tuned"]),
    default="untuned",
    show_default=True,
    help="Which model: as encoded, or as tuning makes it, by plans that were probed with --tuned-steps.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
exclude = click.option("--exclude", multiple=True, metavar="GLOB", help="Leave layers alone whose path matches; may be repeated.")
components = click.option(
    "--components",
    multiple=True,
    metavar="NAME",
    callback=lambda context, parameter, given: texts(context, parameter, given) or (),
    help="Of a pipeline, quantize this one, such as unet, text_encoder or vae; may be repeated. Its denoisers by default.",
)
extractor = click.option(
    "--extractor", default=None, help="embedded, inception[:FILE] or transformers:FOLDER; the subject's own by default."
)
prior = click.option(
    "--prior",
    type=click.Path(path_type=Path),
    default=None,
    help="What `sedaq learn --corpus` taught: the corpus, or the prior beside it; the user's own, or sedaq's, by default.",
)
reference = click.option("--reference", type=click.Path(), default=None, help="Folder of images, .npz, or statistics file to compare with.")


def executor(workers: int) -> str:
    """Where the work of so many processes runs."""
    return "serial" if workers == 1 else f"processes:{workers}"


def executor_options(function: F) -> F:
    """--workers and --executor, of which one may be given. The command receives the executor."""

    @functools.wraps(function)
    def _command(*, workers: int | None, executor_name: str | None, **given: Any) -> Any:
        if workers is not None and executor_name is not None:
            raise click.UsageError("--workers N is short for --executor processes:N; give one of them.")
        if executor_name is not None:
            from ..runtime.executors import parse_executor

            parse_executor(executor_name)  # what is wrong is said before the model is loaded
        return function(**given, executor=executor_name or executor(workers or 1))

    shared = click.option("--workers", type=click.IntRange(1), default=None, help="Processes that share the work; 1 by default.")
    where = click.option(
        "--executor",
        "executor_name",
        default=None,
        metavar="WHERE",
        help="Where the work runs: serial, processes:N (as --workers N), ray:auto (the Ray cluster of this machine, or a new one on it alone), or ray://HOST:PORT.",
    )
    return together(shared, where)(_command)  # type: ignore[return-value]


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Apply several options as one decorator."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
