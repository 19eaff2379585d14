"""Moving probes away from plans that are ruined: where the lower half of the menus ruins every model, plans of it teach nothing.

Third-party models may be of this kind: a U-Net of 10 to 40 channels was 470 times as far from real images at 2 bits as in full precision, and its random
plans were all alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..run import Run
from .designs import Plan, at_rate, design_plans, rates_of
from .measurer import Measurer, probe_task

EVERY = 4  # of so many plans one lowers a few layers below the floor
MAX_LOWERED = 3  # layers


def lowest_useful_rate(run: Run, measurer: Measurer, tuned_steps: int = 0) -> float | None:
    """The lowest rate whose uniform plan is not ruined, where that of at least half of the menus' rates with codes is; None where fewer are.

    Uniform plans have been measured, after as much tuning.
    """
    coded = [rate for rate in rates_of(run.menus) if rate in run.settings.rates]
    ruined = []
    for rate in coded:
        plan = {name: at_rate(menu, rate) for name, menu in run.menus.items()}
        _, measurement = next(iter(measurer.measure([probe_task(run, plan, tuned_steps)])))
        ruined.append(measurement.ruined)
    n_ruined = next((i for i, is_ruined in enumerate(ruined) if not is_ruined), len(ruined))
    if 2 * n_ruined < len(coded):
        return None
    above = [rate for rate in rates_of(run.menus) if rate > coded[n_ruined - 1]]
    return above[0] if above else None


def plans_above(floor: float, run: Run, measured: Sequence[Plan], n_plans: int) -> list[Plan]:
    """Plans that were measured, then random ones of entries at `floor` bits and more; every fourth of these has a few layers below.

    A few layers alone show what low rates cost without ruining everything.
    """
    menus = {name: tuple(e for e in menu if e.rate >= floor) or menu[-1:] for name, menu in run.menus.items()}
    low = {name: tuple(e for e in menu if e.rate < floor) for name, menu in run.menus.items()}
    can_go_low = [name for name, entries in low.items() if entries]
    found = {tuple(plan.values()): plan for plan in measured}
    for index, plan in enumerate(design_plans("stratified", run.subject.layers, menus, n_plans=2 * n_plans, seed=run.settings.seed)):
        if index % EVERY == EVERY - 1 and can_go_low:
            rng = np.random.default_rng([run.settings.seed, index, 2])
            base = {name: menu[max(0, len(menu) // 2)].format for name, menu in menus.items()}
            chosen = rng.choice(can_go_low, size=min(len(can_go_low), int(rng.integers(1, MAX_LOWERED + 1))), replace=False)
            plan = base | {str(name): low[name][int(rng.integers(len(low[name])))].format for name in chosen}
        found.setdefault(tuple(plan[name] for name in run.menus), {name: plan[name] for name in run.menus})
        if len(found) == n_plans:
            break
    return list(found.values())
