"""The comparison with other quantizers as docs show it: tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import doc_tables.peers
import pytest
from doc_tables.layout import Results
from peers_figure import FLOOR, LOOKS, best_rows, draw, draw_figure
from peers_methods import METHODS

MACHINE = {"cpu": "A processor", "cores": 2, "threads": 1, "capability": "AVX2", "torch": "2.13.0"}


def measured_row(name: str, method: str, size_bytes: int, excess: float, **others: Any) -> dict[str, Any]:
    quality = {"fid": 4 + excess, "agreement": 0.9, "psnr": 20.0, "excess": {"value": excess, "ci": [excess - 0.1, excess + 0.1]}}
    sizes = {"size_bytes": size_bytes, "bits_per_weight": 8 * size_bytes / 1e6}
    known = {"setting": "", "versions": {}, "weight_error": 0.01, "share_at_16_bits": 0.25, "quantize_seconds": 1.5}
    return {"name": name, "rival": method, **sizes, **quality, **known, **others}


ROWS = [
    measured_row("full precision", "full precision", 2_000_000, 0.0),
    measured_row("sedaq searched 2", "sedaq", 250_000, -0.05, setting="searched", step_ms=30.0, float_step_ms=20.0),
    measured_row("sedaq tuned 2, 9 steps", "sedaq", 250_000, 0.5, setting="tuned"),
    measured_row("hqq 3 bits, groups of 64", "hqq", 400_000, 128.0, versions={"hqq": "0.2.8.post1"}),
    measured_row("GPTQ 3 bits, groups of 128, ends kept", "GPTQ", 300_000, 3.0, setting="ends kept"),
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Rows of one model."""
    conditions = {"n_images": 1000, "steps": 20, "seeds": [1, 2, 3]}
    content = {"command": "python benchmarks/peers.py mnist-dit", "date": "2026-11-29", "machine": MACHINE, "conditions": conditions}
    (tmp_path / "peers_mnist-dit.json").write_text(json.dumps({**content, "rows": ROWS}))
    return tmp_path


def test_rows_are_compared_with_a_straight_line_between_plans(tmp_path: Path) -> None:
    """sedaq's searched plans lie on 4 − MB from 1 to 3 MB; its intervals and others have a half-width of 0.1."""
    ours = [measured_row(f"sedaq {mb}", "sedaq", mb * 1_000_000, 4.0 - mb, setting="searched") for mb in (3, 1)]
    theirs = [(1_500_000, 2.75), (1_500_000, 2.65), (2_000_000, 1.75), (2_500_000, 9.0), (3_000_001, 0.0), (999_999, 9.0)]
    rows = [*ours, *(measured_row(f"GPTQ {i}", "GPTQ", size, excess, psnr=20.5 - i) for i, (size, excess) in enumerate(theirs))]
    assert doc_tables.peers._compare_with_plans(rows, "searched") == {
        "higher": 2,
        "not decided": 1,
        "lower": 1,
        "lower PSNR": 3,
        "higher PSNR": 1,
    }
    assert set(doc_tables.peers._compare_with_plans(rows, "tuned").values()) == {0}
    (tmp_path / "peers_mnist-unet.json").write_text(json.dumps({"rows": rows}))
    summary = doc_tables.peers.peer_summary(Results(tmp_path)).splitlines()
    assert summary[2:] == ["| mnist-unet | searched | 2 | 1 | 1 | 3 | 1 |", "| mnist-unet | tuned | 0 | 0 | 0 | 0 | 0 |"]


def test_a_keep_list_that_changes_nothing_is_no_row_of_its_own(tmp_path: Path) -> None:
    ours = [measured_row(f"sedaq {mb}", "sedaq", mb * 1_000_000, 4.0 - mb, setting="searched") for mb in (1, 3)]
    theirs = [("Q4_K", 7.0), ("Q4_K, ends kept", 7.0), ("Q3_K", 7.0), ("Q2_K", 7.0), ("Q2_K, ends kept", 6.9)]
    rows = [*ours, *(measured_row(f"gguf {name}", "gguf", 2_000_000, excess) for name, excess in reversed(theirs))]
    (tmp_path / "peers_mnist-unet.json").write_text(json.dumps({"rows": rows}))
    kept = {row["name"] for row in doc_tables.peers.rows_of(Results(tmp_path), "mnist-unet")}
    assert kept == {row["name"] for row in rows} - {"gguf Q4_K, ends kept"}
    assert doc_tables.peers.peer_summary(Results(tmp_path)).splitlines()[2] == "| mnist-unet | searched | 4 | 0 | 0 | 4 | 0 |"


def test_formats_of_one_rate_stand_beside_searched_plans(tmp_path: Path) -> None:
    gptq = measured_row("GPTQ 3 bits, groups of 128, ends kept", "GPTQ", 400_000, 4.0)
    rows = [measured_row(f"sedaq {kind} 3", "sedaq", 375_000, excess) for kind, excess in (("uniform", 9.0), ("searched", 0.5))]
    (tmp_path / "peers_mnist-dit.json").write_text(json.dumps({"rows": [gptq, *rows]}))
    lines = doc_tables.peers.one_rate(Results(tmp_path)).splitlines()
    assert lines[2:] == [
        "| mnist-dit | 2 | – | – | – | – |",
        "| mnist-dit | 3 | 9.00 | – | 4.00 (3.20) | 0.50 |",
        "| mnist-dit | 4 | – | – | – | – |",
    ]


def test_the_nearest_row_within_a_size_stands_for_a_method(tmp_path: Path) -> None:
    ours = [measured_row(f"sedaq uniform {bits}", "sedaq", int(bits * 100_000), 9.0 - bits, setting="uniform") for bits in (2, 3, 4, 4.5)]
    theirs = [
        measured_row(f"GPTQ {i}", "GPTQ", size, excess) for i, (size, excess) in enumerate([(300_000, 5.0), (250_000, 2.0), (400_001, 0.1)])
    ]
    (tmp_path / "peers_mnist-dit.json").write_text(json.dumps({"rows": [ROWS[0], *ours, *theirs]}))
    lines = doc_tables.peers.peers_within(Results(tmp_path), "mnist-dit").splitlines()
    assert lines[0].endswith("| 2 bits, 200,000 bytes | 3 bits, 300,000 bytes | 4 bits, 400,000 bytes | 4.5 bits, 450,000 bytes |")
    assert lines[2] == "| sedaq uniform | 7.00 (6.90 to 7.10) | 6.00 (5.90 to 6.10) | 5.00 (4.90 to 5.10) | 4.50 (4.40 to 4.60) |"
    assert lines[3] == "| GPTQ | – | 2.00 (1.90 to 2.10) | 2.00 (1.90 to 2.10) | 0.10 (0.00 to 0.20) |"


def test_the_page_has_a_section_for_each_model_that_was_measured(results: Path, tmp_path: Path) -> None:
    section = doc_tables.peers.peer_models(Results(results))
    assert section.count("### ") == 1 and "1,000 images at 20 steps from each of 3 noise seeds" in section
    assert "](peers_mnist-dit.png)" in section
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [
        row["name"] for row in sorted(ROWS, key=lambda row: row["size_bytes"])
    ]
    assert "| 30 (1.50 of float) |" in lines[0] and lines[1].endswith("| – |") and lines[2].endswith("| as float |")
    assert "| 128.00 (127.90 to 128.10) |" in lines[3] and "| 25.0 % |" in lines[3]
    assert doc_tables.peers.peer_versions(Results(results)) == "hqq 0.2.8.post1"
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert doc_tables.peers.peer_models(Results(nothing)).startswith("No model has been measured yet")


def test_the_figure_has_a_marker_for_each_method_and_room_for_no_excess(results: Path) -> None:
    figure = draw({"mnist-dit": ROWS})
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["sedaq tuned", "sedaq searched", "GPTQ", "hqq", "open: input and output layers at 16 bits"]
    heights = [float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "None" and len(line.get_xdata())]
    assert sorted(heights) == [FLOOR, 0.5, 3.0, 128.0]
    assert len({marker for marker, _ in LOOKS.values()}) == len(LOOKS) == len(METHODS) + 3
    assert draw_figure(results, "mnist-dit").read_bytes().startswith(b"\x89PNG")


def test_with_other_models_beside_it_a_method_has_its_best_rows_alone() -> None:
    theirs = [(2.0, 9.0), (2.5, 10.0), (3.0, 4.0), (3.0, 5.0), (4.0, 4.5), (4.5, 1.0)]
    rows = [measured_row(f"hqq {i}", "hqq", int(1e6 * bits / 8), excess) for i, (bits, excess) in enumerate(theirs)]
    assert [row["name"] for row in best_rows(rows)] == ["hqq 0", "hqq 2", "hqq 5"]


def test_rows_of_many_bits_are_not_drawn() -> None:
    kept_at_16 = measured_row("hqq 4 bits, groups of 64", "hqq", int(1e6 * 12 / 8), 0.2)
    (axes,) = draw({"mnist-dit": [ROWS[0], kept_at_16, ROWS[4]]}).axes
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "None" and len(line.get_xdata())] == [3.0]


def test_several_models_have_a_panel_each_and_one_legend(results: Path) -> None:
    figure = draw({"one": ROWS, "two": ROWS[:2], "three": ROWS})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two", "three"]
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == len(set(texts))
    (results / "peers_mnist-unet.json").write_text((results / "peers_mnist-dit.json").read_text())
    assert draw_figure(results, "mnist-dit", "mnist-unet") == results / "peers.png"
