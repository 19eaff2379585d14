"""sedaq bench (distortion | encode | kernels | model | search)"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from . import options

EFFORT_HELP = "draft, fast, full or seconds a layer."


@click.group(help="Measure distortion, encoding, kernels, a whole model or a search.")
def command() -> None:
    pass


def _print(rows: Callable[[], list[dict[str, Any]]], as_json: bool) -> None:
    from ..progress import shown
    from ..reports.summaries import show
    from ..reports.tables import rows_table

    with shown():
        measured = rows()
    if as_json:
        options.print_json(measured)
    else:
        flat = [_flat(row) for row in measured]
        show(rows_table(flat, list(flat[0])))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A column for each part of a column that has several."""
    parts = (
        {f"{name} {part}": value for part, value in cell.items()} if isinstance(cell, dict) else {name: cell} for name, cell in row.items()
    )
    return {name: value for part in parts for name, value in part.items()}


def _whole_numbers(option: str, text: str) -> list[int]:
    from ..errors import InputError

    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"{option} {text!r}: give whole numbers above zero, separated by commas")
    return [int(word) for word in words]


def _checked(formats: str) -> list[str]:
    """The formats named, refused before any work if one is unknown."""
    from ..aq.formats import Format

    return [str(Format.parse(text)) for text in formats.split(",")]


def _checked_efforts(efforts: str) -> list[str]:
    from ..aq.encoder.encoder import parse_effort

    for text in efforts.split(","):
        parse_effort(text)
    return efforts.split(",")


def _positive_numbers(option: str, text: str) -> list[float]:
    from ..errors import InputError

    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise InputError(f"{option} {text!r}: give numbers above zero, separated by commas")
    return numbers


def _shapes(text: str) -> list[tuple[int, int]]:
    from ..errors import InputError

    pairs = [word.strip().split("x") for word in text.split(",")]
    if not all(len(pair) == 2 and all(side.isdecimal() and int(side) > 0 for side in pair) for pair in pairs):
        raise InputError(f"--shapes {text!r}: give OUTxIN in whole numbers above zero, separated by commas, such as 384x384,512x2048")
    return [(int(out), int(inputs)) for out, inputs in pairs]


def _formats(default: tuple[str, ...]) -> Any:
    return click.option("--formats", default=",".join(default), show_default=True, help="Formats, separated by commas.")


@command.command(help="Mean squared error on a Gaussian source, beside the limit of any quantizer.")
@_formats(("3x8g16", "2x8g8", "4x8g16", "3x8g8", "4x8g8"))
@click.option("--size", type=click.IntRange(64), default=512, show_default=True, help="Rows and columns.")
@click.option("--effort", default="fast", show_default=True, help=EFFORT_HELP)
@options.seed
@options.as_json
def distortion(formats: str, size: int, effort: str, seed: int, as_json: bool) -> None:
    from ..aq.profiling import bench

    chosen, efforts = _checked(formats), _checked_efforts(effort)
    _print(lambda: bench.distortion(chosen, size=size, effort=efforts[0], seed=seed), as_json)


@command.command(help="Output error and seconds on heavy-tailed layers with correlated inputs, beside AQLM's where they were measured.")
@_formats(("2x8g8", "1x8g4", "1x6g3"))
@click.option("--bits", default="", help="Total bits, separated by commas: the best format within each, instead of --formats.")
@click.option("--shapes", default="384x384", show_default=True, help="OUTxIN of the layers, separated by commas.")
@click.option("--efforts", default="fast,full", show_default=True, help=EFFORT_HELP)
@options.seed
@options.as_json
def encode(formats: str, bits: str, shapes: str, efforts: str, seed: int, as_json: bool) -> None:
    from ..aq.profiling import bench

    whats: Sequence[str | float] = _positive_numbers("--bits", bits) if bits else _checked(formats)
    cases = [(shape, what) for shape in _shapes(shapes) for what in whats]
    chosen = _checked_efforts(efforts)
    _print(lambda: bench.encoding(cases, efforts=chosen, seed=seed), as_json)


@command.command(help="Milliseconds of every kernel, and ratios to torch's own products (above 1: ours is faster).")
@_formats(("1x8g8", "2x8g8", "4x8g8"))
@click.option("--tokens", default="1,16,256", show_default=True, help="Token counts, separated by commas.")
@click.option("--threads", default="", help="Numbers of threads, separated by commas; torch's own if left out.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@options.as_json
def kernels(formats: str, tokens: str, threads: str, repeats: int, as_json: bool) -> None:
    import torch

    from ..aq.formats import Format
    from ..errors import InputError
    from ..kernels import bench

    counts = _whole_numbers("--tokens", tokens)
    of_threads = _whole_numbers("--threads", threads) if threads else [torch.get_num_threads()]
    parsed = {text: Format.parse(text) for text in formats.split(",")}
    cases = [(t, f.n_codebooks, f.n_entries, f.group_size, f.structure) for t, f in parsed.items() if f.kind == "additive"]
    if not cases:
        raise InputError(f"--formats {formats!r}: no kernel works on these; give formats with codes such as 2x8g8")

    def rows() -> list[dict[str, Any]]:
        measured = []
        for n in of_threads:
            torch.set_num_threads(n)
            measured += bench.compare(cases, tokens=counts, repeats=repeats)
        return measured

    _print(rows, as_json)


@command.command(
    help="Seconds of a sampling step, peak memory and operations of one or several models, quantized folders among them."
    f"\n\n{options.SUBJECT_HELP}"
)
@click.argument("subjects", nargs=-1, required=True)
@click.option("--images", type=click.IntRange(1), default=64, show_default=True, help="Sampled at once.")
@click.option("--arithmetic", default="float32", show_default=True, help="Among float32, bfloat16, a8, separated by commas.")
@click.option("--layers", is_flag=True, help="Every layer's operations and milliseconds, too.")
@options.as_json
def model(subjects: tuple[str, ...], images: int, arithmetic: str, layers: bool, as_json: bool) -> None:
    from ..aq.profiling.model_bench import model_steps
    from ..progress import shown
    from ..reports.summaries import show
    from ..reports.tables import model_table, operations_table

    with shown():
        rows = model_steps(subjects, arithmetics=arithmetic.split(","), n_images=images)
    if as_json:
        options.print_json(rows)
        return
    show(model_table(rows))
    for row in rows if layers else ():
        ms = {layer["name"]: layer["ms"] for layer in row["layers"]}
        show(operations_table({"layers": row["layers"], "plan": row}, ms, f"{row['subject']}, {row['arithmetic']}: "))


@command.command(help="Searched plans beside what others do at equal bytes, measured on noise that no choice was made on.")
@options.run_folder
@options.run_subject
@click.option("--bits", default="1.5,2,2.5,3,4", show_default=True, help="Total bits, separated by commas.")
@click.option(
    "--method",
    multiple=True,
    metavar="NAME",
    help="What it is held against beside uniform, such as 'one-at-a-time greedy'; may be repeated. All if left out.",
)
@click.option("--images", type=click.IntRange(8), default=2000, show_default=True, help="Of each plan and each of three noise seeds.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Sampling steps.")
@click.option("--verify", type=click.IntRange(2), default=8, show_default=True, help="Samplings that the searched plan may take.")
@click.option(
    "--random", type=click.IntRange(0), default=0, help="Random plans measured on the search's noise, the best of which competes."
)
@options.executor_options
@options.together(options.device, options.as_json)
def search(
    run_folder: Path,
    run_subject: str | None,
    bits: str,
    method: tuple[str, ...],
    images: int,
    steps: int,
    verify: int,
    random: int,
    executor: str,
    device: str,
    as_json: bool,
) -> None:
    from ..errors import InputError
    from ..search.baselines import BASELINES
    from ..search.bench import bench_search
    from ..sensitivity.run import Run

    try:
        rates = [float(text) for text in bits.split(",")]
    except ValueError as error:
        raise InputError(f"--bits {bits!r}: give numbers separated by commas, such as 1.5,2") from error
    run = Run.open(run_folder, subject=run_subject, device=device)
    settings: dict[str, Any] = {
        "methods": method or tuple(BASELINES),
        "n_images": images,
        "steps": steps,
        "verify": verify,
        "n_random": random,
        "executor": executor,
    }
    _print(lambda: bench_search(run, bits=rates, **settings), as_json)
