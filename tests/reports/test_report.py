"""The page of a run, from a made-up run folder."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from sedaq.errors import InputError
from sedaq.reports.figures import FIGURES, FigureSpec
from sedaq.reports.inputs import fidelity_of, read_run
from sedaq.reports.report import write_report
from sedaq.storage import append_record, read_json, write_json

from .conftest import EVALUATIONS, damage, layer_names, sensitivity_frame, toy_grids, write_run


class Page(HTMLParser):
    """Links, anchors, images and table rows of a page; checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for name, value in attrs if name in ("href", "src", "srcset", "action") and value is not None]
        self.ids |= {values["id"]} if values.get("id") else set()  # type: ignore[arg-type]
        if tag == "img":
            self.images.append(values)
        if tag == "tr":
            self.rows.append([])
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th") and self.rows:
            self.rows[-1].append(data)


@pytest.fixture
def copied(full_run: Path, tmp_path: Path) -> Path:
    """A run of one's own to damage."""
    return shutil.copytree(full_run, tmp_path / "run")


def test_page_is_one_file_without_network(full_run: Path) -> None:
    text = (full_run / "report.html").read_text()
    page = Page(text)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    own = re.sub(r'<style>.*?</style>|<script type="application/octet-stream".*?</script>', "", text, count=2, flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(|<script[^>]* src", own)
    assert not re.search(r"@import|url\((?!['\"]?data:)", text)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    drawn = [image for image in page.images if "src" in image]  # the other one is what images are enlarged in
    assert len(drawn) == len(FIGURES) == len(page.images) - 1
    assert all(image["alt"] and image["width"] and image["height"] for image in drawn)
    assert len(text) < 5_000_000


@pytest.mark.parametrize("spec", FIGURES, ids=lambda spec: spec.name)
def test_figure_file_is_not_blank(full_run: Path, spec: FigureSpec) -> None:
    pixels = imread(full_run / "figures" / f"{spec.name}.png")[..., :3]
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    assert pixels.std() > 0.05
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):  # nothing is cut off
        assert edge.std() < 0.01
    if spec.table is not None:
        assert len(pd.read_csv(full_run / "figures" / f"{spec.name}.csv")) > 0


def test_evaluation_numbers_equal_the_inputs(full_run: Path) -> None:
    rows = {row[0]: row for row in reversed(Page((full_run / "report.html").read_text()).rows) if row and len(row) > 6}
    for name, size, bits, fid, se, agreement, _ in EVALUATIONS:
        row = rows[name]
        assert int(row[1].replace(",", "")) == size
        assert float(row[2]) == bits
        value, error = (float(part) for part in row[3].split(" ± "))
        assert (value, error) == (fid, se)
        assert float(row[5].split(" ±")[0]) == pytest.approx(100 * agreement)


def test_layer_table_and_csv_equal_the_inputs(full_run: Path) -> None:
    source = pd.read_csv(full_run / "predictor" / "sensitivity.csv")
    lowest = source[source["rate"] == 1.5]
    written = pd.read_csv(full_run / "figures" / "sensitivity_layers.csv")
    assert written["cost"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(
        written.sort_values("layer", ignore_index=True), lowest.sort_values("layer", ignore_index=True), check_dtype=False
    )
    names = [row[0] for row in Page((full_run / "report.html").read_text()).rows if len(row) == 9 and row[0] != "layer"]
    assert names[-len(lowest) :] == list(lowest["layer"])


def test_captions_state_conditions_and_verdict(full_run: Path) -> None:
    text = html.unescape((full_run / "report.html").read_text())
    assert "n = 512 images, 10 steps, seed 7" in text
    assert "n = 5,000 images, 20 steps" in text
    assert "the searched plan is better" in text
    assert "Spearman 0.941, 95 % interval [0.905, 0.963]" in text and "noise ceiling 0.978" in text


def test_how_the_plan_was_found_and_how_it_fares_is_said(full_run: Path) -> None:
    text = html.unescape((full_run / "report.html").read_text())
    assert "Found by exact+swaps after 200 trials of Optuna: swaps lowered the score by 0.0250, optuna found nothing better." in text
    assert "is at most 0.0020 % above the least possible" in text
    name = layer_names(4)[1]
    assert f"Within one standard error the choice of 1 would change: {name} (1x3g2 would do)." in text
    assert pd.read_csv(full_run / "figures" / "plan.csv").set_index("layer")["would_also_do"].dropna().to_dict() == {name: "1x3g2"}
    assert "Of 6 plans of other methods 4 are worse than the searched plan of their budget" in text
    assert "better are one-at-a-time greedy at 1.5 bits." in text
    written = pd.read_csv(full_run / "figures" / "comparison.csv").set_index(["bits", "method"])
    assert written.loc[(2.0, "uniform"), ["excess", "excess_low", "over_searched"]].tolist() == [18.0, 17.5, 16.0]


def test_the_way_of_tuning_is_shown_and_said(full_run: Path) -> None:
    text = html.unescape((full_run / "report.html").read_text())
    assert "searched+tuned: from 0.0200 to 0.00600 after 100 of 150 steps, 1 min 15 s. Its end: the loss diverged at step 150." in text
    written = pd.read_csv(full_run / "figures" / "tuning.csv").set_index(["name", "step"])["held_out_loss"]
    assert written["first", 100] == 0.012 and math.isnan(written["searched+tuned", 150])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"metric": "fid", "value": 3.0, "std": 0.5}, (3.0, 0.5)),
        ({"metrics": {"fid": {"value": 3.0, "se": 0.2}}, "n_images": 512}, (3.0, 0.2)),
        ({"fid": {"value": 3.0, "se": 0.2}}, (3.0, 0.2)),
        ({"metric": "kid", "value": 3.0, "std": 0.5}, (math.nan, math.nan)),
        (None, (math.nan, math.nan)),
    ],
)
def test_fidelity_of(content: object, expected: tuple[float, float]) -> None:
    assert fidelity_of(content, "fid") == pytest.approx(expected, nan_ok=True)


def test_front_numbers_equal_the_inputs(full_run: Path) -> None:
    plans = read_json(full_run / "plans" / "front.json", "front")["plans"]
    written = pd.read_csv(full_run / "figures" / "front.csv")
    assert list(written["predicted"]) == pytest.approx([plan["predicted"]["value"] for plan in plans])
    assert written["uniform_measured"].iloc[0] == pytest.approx(plans[0]["uniform_measured"]["metrics"]["fid"]["value"])
    assert math.isnan(written["measured"].iloc[1])
    assert "on the same noise, n = 1,024 images." in (full_run / "report.html").read_text()


def test_a_uniform_plan_that_won_is_said_and_uniform_json_is_not_the_choice(copied: Path) -> None:
    plans = read_json(copied / "plans" / "front.json", "front")["plans"]
    damage(copied / "plans" / "front.json", "plans", [{**plans[2], "difference_ci": [0, 0]}], "front")
    shutil.copy(copied / "plans" / "two.json", copied / "plans" / "uniform.json")
    text = write_report(copied).read_text()
    assert "the search found no better plan" in text
    assert "plans/two.json: " in text and "plans/uniform.json" not in text


def test_missing_inputs_are_stated(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", only=()), tmp_path / "elsewhere" / "page.html")
    text = page.read_text()
    assert page == tmp_path / "elsewhere" / "page.html"
    for spec in FIGURES:
        assert f"{spec.source}</span> yet. <code>{spec.verb}</code> writes it." in text
    assert Page(text).images == []


def test_how_inputs_are_rounded_is_said(copied: Path) -> None:
    path = copied / "plans" / "two.json"
    content = read_json(path, "plan")
    name = next(iter(content["layers"]))
    content["layers"][name] |= {"activation_bits": 8, "activation_scheme": "token"}
    write_json(path, "plan", content)
    page = html.unescape(write_report(copied).read_text())
    n_others = len(content["layers"]) - 1
    assert f"inputs rounded: 1 to 8 bits token (8-bit kernels); {n_others} not at all" in page
    assert f"{content['layers'][name]['format']}, inputs 8 bits token" in page


def test_front_alone_gives_a_plan(tmp_path: Path) -> None:
    write_report(write_run(tmp_path, only=("front",)))
    assert "plans/front.json: 2.50 bits per weight" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "plan.png").exists()


@pytest.mark.slow
def test_grids_are_kept_for_the_next_report_and_stale_figures_go(copied: Path) -> None:
    before = (copied / "report.html").read_bytes()
    assert write_report(copied).read_bytes() == before
    (copied / "predictor" / "fit.json").unlink()
    write_report(copied)
    assert not (copied / "figures" / "predictor.png").exists()
    assert (copied / "figures" / "images-searched-tuned.png").exists()


def test_nan_and_none_are_survived(copied: Path) -> None:
    table = sensitivity_frame(["a.to_q", "b.to_k", "c.ff.net.2"])
    table.loc[table["layer"] == "a.to_q", ["cost", "cost_low", "cost_high"]] = float("nan")
    table.loc[table["layer"] == "b.to_k", "cost"] = 0.0
    table.to_csv(copied / "predictor" / "sensitivity.csv", index=False)
    fit = {"metric": "fid", "n_probes": 2, "spearman": None, "ceiling": None, "baselines": {"bits": None}, "predictions": []}
    for field, value in fit.items():
        damage(copied / "predictor" / "fit.json", field, value, "fit") if value is not None else None
    grids = toy_grids(5, channels=3)
    grids["uniform"][0, 0, 0, 0] = float("nan")
    text = write_report(copied, grids=grids).read_text()
    assert "1 image holds NaN" in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().replace("holds nan", "")


def test_markup_and_formulas_in_names_are_harmless(tmp_path: Path) -> None:
    write_run(tmp_path, only=())
    (tmp_path / "predictor").mkdir()
    sensitivity_frame(["<b>$x_1$</b>.to_q", "$\\frac{.to_k"]).to_csv(tmp_path / "predictor" / "sensitivity.csv", index=False)
    text = write_report(tmp_path).read_text()
    assert "<b>" not in text and "&lt;b&gt;" in text


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "name", ["run.json", "predictor/fit.json", "plans/front.json", "plans/two.json", "contest.json", "figures/grids.safetensors"]
)
def test_cut_file_is_refused(copied: Path, name: str) -> None:
    before = (copied / "report.html").read_bytes()
    _cut(copied / name)
    with pytest.raises(InputError, match=re.escape(name)) as caught:
        write_report(copied)
    assert "\n" not in str(caught.value)
    assert (copied / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "kind", "field", "value"),
    [
        ("predictor/fit.json", "fit", "spearman", None),
        ("predictor/fit.json", "fit", "predictions", [{"measured": "many"}]),
        ("plans/front.json", "front", "plans", [{"size_bytes": 1}]),
        ("plans/front.json", "front", "plans", [{"bits_per_weight": 2.0}]),
        ("plans/two.json", "plan", "subject", {"name": "other", "fingerprint": "ffff"}),
        ("contest.json", "contest", "rows", [{"bits": 2.0}]),
        ("contest.json", "contest", "conditions", None),
        ("run.json", "run", "subject", None),
    ],
)
def test_well_sealed_but_wrong_content_is_refused(copied: Path, name: str, kind: str, field: str, value: object) -> None:
    damage(copied / name, field, value, kind)
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(copied)


@pytest.mark.parametrize("text", ["", "layer,role\na,b\n", 'a,"b\n', "\x00\x01"])
def test_damaged_table_is_refused(copied: Path, text: str) -> None:
    (copied / "predictor" / "sensitivity.csv").write_text(text)
    with pytest.raises(InputError, match=r"sensitivity\.csv: .*sedaq fit"):
        write_report(copied)


def test_text_where_a_number_belongs_is_refused(copied: Path) -> None:
    path = copied / "predictor" / "sensitivity.csv"
    path.write_text(path.read_text().replace("1x5g4,1.47", "1x5g4,oops", 1))
    with pytest.raises(InputError, match="'bits_per_weight' holds what is not a number"):
        write_report(copied)


def test_evaluation_without_metrics_and_flipped_line_are_refused(copied: Path) -> None:
    path = copied / "evaluations.jsonl"
    lines = path.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["metrics"] = {}
    path.write_text("\n".join([lines[0], json.dumps(changed), ""]))
    with pytest.raises(InputError, match="line 2"):
        write_report(copied)


def test_no_run_folder_and_wrong_grids_are_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="shape"):
        write_report(copied, grids={"a": torch.zeros(2, 1, 4, 4), "b": torch.zeros(3, 1, 4, 4)})
    with pytest.raises(InputError, match="shape"):
        write_report(copied, grids={"a": torch.zeros(4, 4)})


def test_a_tuning_that_had_nothing_to_tune_has_no_line(full_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(full_run, folder)
    before = read_run(folder).tunings
    empty = {**before[0], "name": "asleep", "held_out_losses": []}
    append_record(
        folder / "tunings.jsonl", "tuning", {key: value for key, value in empty.items() if key not in ("kind", "schema", "sha256")}
    )
    assert [record["name"] for record in read_run(folder).tunings] == [record["name"] for record in before]
    write_report(folder)
