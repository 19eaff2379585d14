"""What menus lose and gain where a faster kind of format that is as good is taken:  python benchmarks/fast_menus.py      → results/fast_menus.json

For both shipped models the menus of least error and those of menu_choice.AS_GOOD: entries that differ, the mean ratio of errors at draft effort, and
milliseconds of a step of 16 images at each rate (every layer at it) by this machine's cost model.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from results import keep

import sedaq
from sedaq.aq.plans import menu_choice
from sedaq.aq.plans.menu import RATES, Entry
from sedaq.aq.plans.store import EncodingStore
from sedaq.aq.profiling.step_times import StepTimes

N_IMAGES = 16
Menus = dict[str, tuple[Entry, ...]]


def menus_of(store: EncodingStore, as_good: float) -> tuple[Menus, dict[str, menu_choice.Choices]]:
    """The menus, and the errors of layers' own formats."""
    before, menu_choice.AS_GOOD = menu_choice.AS_GOOD, as_good
    try:
        menus = menu_choice.measured_menus(store, RATES)
        return menus, {layer.name: menu_choice.own_choices(store, layer, RATES) for layer in store.subject.layers}
    finally:
        menu_choice.AS_GOOD = before


def milliseconds(times: StepTimes, menus: Menus, rate: float) -> float:
    """Of a step with every layer at its highest rate up to `rate`."""
    formats = {}
    for layer, menu in menus.items():
        fitting = [entry for entry in menu if entry.rate <= rate]
        formats[layer] = (fitting[-1] if fitting else menu[0]).format
    return times.of_plan(formats) / 1e6


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name in ("mnist-dit", "mnist-unet"):
        subject = sedaq.load(name)
        with tempfile.TemporaryDirectory() as folder:
            store = EncodingStore(subject, Path(folder), calibration={"seed": 0, "n_images": 64, "steps": 10})
            best, errors = menus_of(store, 0.0)
            fast, other_errors = menus_of(store, menu_choice.AS_GOOD)
        times = StepTimes.measure(subject, N_IMAGES)
        ratios = [other_errors[layer][rate][1] / errors[layer][rate][1] for layer in errors for rate in RATES if errors[layer][rate][1] > 0]

        changed = sum(a.format != b.format for layer in best for a, b in zip(best[layer], fast[layer], strict=False))
        rows.append(
            {
                "subject": name,
                "entries": sum(map(len, best.values())),
                "entries_that_differ": changed,
                "mean_ratio_of_errors": statistics.geometric_mean(ratios),
                "ms_per_step": {
                    f"{rate:g}": {"least error": milliseconds(times, best, rate), "as good": milliseconds(times, fast, rate)}
                    for rate in RATES
                },
            }
        )
        print(rows[-1], flush=True)
    keep("fast_menus", "python benchmarks/fast_menus.py", rows)


if __name__ == "__main__":
    main()
