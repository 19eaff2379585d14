"""Which plans are probed."""

from __future__ import annotations

import numpy as np

from sedaq.aq.formats import Format
from sedaq.aq.menu import Entry
from sedaq.sensitivity.probe import stratified_plans


def entries(n: int) -> tuple[Entry, ...]:
    formats = [Format.parse(text) for text in ("1x3g2", "1x4g2", "1x5g2", "1x8g2")]
    rated = [Entry(rate, f, 10 * i, 11 * i) for i, (rate, f) in enumerate(zip((1.5, 2.0, 3.0, 4.0), formats, strict=True), start=1)]
    return (*rated[:n], Entry(16.0, Format("asis"), 90, 99))


MENUS = {f"l{i}": entries(4) for i in range(12)}


def test_plans_are_deterministic_and_a_longer_design_begins_with_the_shorter() -> None:
    first = list(stratified_plans(MENUS, n_plans=40, seed=3))
    assert list(stratified_plans(MENUS, n_plans=40, seed=3)) == first
    assert list(stratified_plans(MENUS, n_plans=25, seed=3)) == first[:25]
    assert list(stratified_plans(MENUS, n_plans=40, seed=4))[5:] != first[5:]


def test_uniform_plans_come_first_full_precision_among_them() -> None:
    plans = list(stratified_plans({**MENUS, "small": entries(2)}, n_plans=8, seed=0))
    texts = [{str(format) for name, format in plan.items() if name != "small"} for plan in plans[:5]]
    assert texts == [{"1x3g2"}, {"1x4g2"}, {"1x5g2"}, {"1x8g2"}, {"asis"}]
    assert [str(plan["small"]) for plan in plans[:5]] == ["1x3g2", "1x4g2", "1x4g2", "1x4g2", "asis"]
    assert len(list(stratified_plans(MENUS, n_plans=2, seed=0))) == 2


def test_random_plans_cover_all_shares_of_low_layers_and_all_entries() -> None:
    plans = list(stratified_plans(MENUS, n_plans=69, seed=0))[5:]
    low = {"1x3g2", "1x4g2"}
    shares = np.array([np.mean([str(format) in low for format in plan.values()]) for plan in plans])
    # 64 van der Corput shares fill 0 … 1 evenly; the draw of 12 layers adds a binomial spread of at most 0.14
    assert np.abs(np.sort(shares) - (np.arange(64) + 0.5) / 64).max() < 0.15
    for name in MENUS:
        assert {str(plan[name]) for plan in plans} == {"1x3g2", "1x4g2", "1x5g2", "1x8g2", "asis"}


def test_no_plan_comes_twice_even_where_there_are_few() -> None:
    for menu, n_plans in (({"only": entries(4)}, 50), (MENUS, 200)):
        plans = list(stratified_plans(menu, n_plans=n_plans, seed=0))
        assert len({tuple(map(str, plan.values())) for plan in plans}) == len(plans)
    assert len(list(stratified_plans({"only": entries(4)}, n_plans=50, seed=0))) == 5
