"""Keep what the demo measured:  make demo && python benchmarks/demo.py      → results/demo.json, docs/front.png"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from results import keep

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    keep_demo(parser.parse_args().folder)


def keep_demo(folder: Path) -> None:
    """What the demo in `folder` measured → results/demo.json, and its front → docs/front.png."""
    fit = json.loads((folder / "predictor/fit.json").read_text())
    front = json.loads((folder / "plans/front.json").read_text())["plans"]
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]

    def some(record: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: record.get(name) for name in names}

    rows = {
        "fit": some(fit, "metric", "n_probes", "spearman", "spearman_ci", "ceiling", "ceiling_ci", "baselines"),
        "front": [
            some(
                plan,
                "bits_per_weight",
                "size_bytes",
                "predicted",
                "uniform_predicted",
                "measured",
                "uniform_measured",
                "difference_ci",
                "solver",
            )
            for plan in front
        ],
        "tunings": [
            some(json.loads(line), "name", "held_out_losses", "ending") for line in (folder / "tunings.jsonl").read_text().splitlines()
        ],
        "evaluations": [some(record, "name", "size_bytes", "bits_per_weight", "n_images", "seconds", "metrics") for record in evaluations],
    }
    keep("demo", "make demo", rows)
    shutil.copyfile(folder / "figures" / "front.png", ROOT / "docs" / "front.png")


if __name__ == "__main__":
    main()
