"""How many formats a menu has to try:  python benchmarks/menu_candidates.py      → results/menu_candidates.json

Every layer of the shipped models and every rate, at draft effort: by how much the least error rises where fewer of the most promising formats
are tried than four.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from results import keep

import sedaq
from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import RATES, candidates
from sedaq.aq.plans.menu_choice import draft_error, drawn_rows
from sedaq.aq.plans.store import EncodingStore

LIMITS = (1, 2, 3, 4)


def rows_of(name: str, folder: Path) -> list[dict[str, Any]]:
    store = EncodingStore(sedaq.load(name), folder, calibration={"seed": 0, "n_images": 64, "steps": 10})
    logs: dict[int, list[float]] = {limit: [] for limit in LIMITS}
    drafts = dict.fromkeys(LIMITS, 0)
    for layer in store.subject.layers:
        objective, tried = drawn_rows(store.objective(layer), store.seed), dict[Format, float]()
        of_rates = [candidates(rate, (layer.shape,), max(LIMITS)) for rate in RATES]
        for format in {format for formats in of_rates for format in formats}:
            tried[format] = draft_error(objective, format, seed=store.seed)
        for limit in LIMITS:
            seen = [formats[:limit] for formats in of_rates if formats]
            drafts[limit] += len({format for formats in seen for format in formats})
            least = math.inf
            for formats in seen:  # what fits a lower rate fits the next
                least = min([least, *(tried[format] for format in formats)])
                logs[limit].append(math.log(least))
    more = {limit: [a - b for a, b in zip(logs[limit], logs[max(LIMITS)], strict=True)] for limit in LIMITS}
    return [
        {
            "model": name,
            "limit": limit,
            "drafts": drafts[limit],
            "mean_rise": math.expm1(statistics.fmean(more[limit])),
            "max_rise": math.expm1(max(more[limit])),
        }
        for limit in LIMITS
    ]


def main() -> None:
    rows = []
    for name in ("mnist-dit", "mnist-unet"):
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(name, Path(folder))
        print(rows[-len(LIMITS) :], flush=True)
    keep("menu_candidates", "python benchmarks/menu_candidates.py", rows)


if __name__ == "__main__":
    main()
