"""Numbers as they are written, and tables for the terminal."""

from __future__ import annotations

import doctest
import io

import matplotlib
import pytest
from rich.console import Console

from sedaq.reports import numbers, style
from sedaq.reports.tables import evaluation_table, inspect_table, print_table


def rendered(table: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_examples_in_the_docstrings() -> None:
    for module, least in ((numbers, 6), (style, 1)):
        failed, tried = doctest.testmod(module)
        assert failed == 0 and tried >= least


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (-0.5, "−0.500"), (1e-7, "1.00e−07"), (123456, "123,456"), (float("nan"), "–"), (float("inf"), "∞")]
)
def test_number(value: float, text: str) -> None:
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"), [(9.996, 0.0999, "10.00 ± 0.10"), (1234.5, 67.8, "1,234 ± 68"), (2.0, 0, "2.00"), (None, 1, "–")]
)
def test_with_error(value: float | None, error: float, text: str) -> None:
    assert numbers.with_error(value, error) == text


def test_evaluation_table_shows_only_metrics_that_exist() -> None:
    record = {
        "name": "searched",
        "size_bytes": 560_104,
        "bits_per_weight": 1.99,
        "metrics": {"fid": {"value": 5.127, "se": 0.054}, "psnr": {"value": None}},
    }
    text = rendered(evaluation_table([record]))
    assert "560,104" in text and "1.99" in text and "5.127 ± 0.054" in text
    assert "KID" not in text


def test_inspect_table() -> None:
    formats = [
        {"format": "1x5g4", "bits_per_weight": 1.27, "size_bytes": 2600},
        {"format": "asis", "bits_per_weight": 16.0, "size_bytes": 32768},
    ]
    layer = {
        "name": "blocks.0.to_q",
        "role": "attention query",
        "block": "blocks.0",
        "kind": "linear",
        "shape": [128, 128],
        "n_weights": 16384,
        "formats": formats,
    }
    text = rendered(inspect_table({"n_layers": 1, "n_weights": 16384, "size_bytes": 32_900, "bits_per_weight": 16.0, "layers": [layer]}))
    assert "128 × 128" in text and "1x5g4 1.27" in text and "16,384 weights" in text and "0.033 MB" in text


def test_print_table_writes_numbers_by_column() -> None:
    console = Console(file=io.StringIO(), width=120)
    rows = [{"layer": "a", "size_bytes": 1_000_000, "seconds": 95.0, "fid": {"value": 2.0, "se": 0.1}}, {"layer": "b"}]
    print_table(rows, ["layer", "size_bytes", "seconds", "fid"], title="All", console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.000 MB" in text and "1 min 35 s" in text and "2.00 ± 0.10" in text and "–" in text and "Fréchet distance" in text


def test_drawing_leaves_settings_alone_and_is_repeatable() -> None:
    before = dict(matplotlib.rcParams)

    @style.styled
    def draw() -> style.Figure:
        figure = style.new_figure(2)
        figure.add_subplot().plot([1, 2], [3, 4])
        return figure

    assert style.png_bytes(draw()) == style.png_bytes(draw())
    assert dict(matplotlib.rcParams) == before


def test_families_and_variants_have_distinct_colours() -> None:
    colours = [colour for _, _, colour in style.FAMILIES] + [style.OTHER]
    assert len(set(colours)) == len(colours)
    variants = [style.variant_colour(name) for name in ("full precision", "uniform", "searched", "searched + tuned")]
    assert len(set(variants)) == 4


def test_short_names_keep_what_tells_layers_apart() -> None:
    paths = [f"down_blocks.{a}.attentions.{b}.transformer_blocks.{c}.ff.net.0.proj" for a in range(3) for b in range(2) for c in range(10)]
    short = {style.shorten(path) for path in paths}
    assert len(short) == len(paths) and max(map(len, short)) <= 36
    assert len(style.shorten("x" * 50)) == 36 and style.shorten("proj_out") == "proj_out"
