"""Which plans are probed."""

from __future__ import annotations

import numpy as np
import pytest

from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import Entry
from sedaq.errors import InputError
from sedaq.models.layers import Layer
from sedaq.sensitivity.probing.designs import DESIGNS, check_design, design_plans


def entries(n: int) -> tuple[Entry, ...]:
    formats = [Format.parse(text) for text in ("1x3g2", "1x4g2", "1x5g2", "1x8g2")]
    rated = [Entry(rate, f, 10 * i, 11 * i) for i, (rate, f) in enumerate(zip((1.5, 2.0, 3.0, 4.0), formats, strict=True), start=1)]
    return (*rated[:n], Entry(16.0, Format("asis"), 90, 99))


MENUS = {f"l{i}": entries(4) for i in range(12)}
LAYERS = [Layer(f"l{i}", f"role {i % 3}", f"blocks.{i // 4}", "linear", (8, 8)) for i in range(12)]


def stratified_plans(menus: dict[str, tuple[Entry, ...]], *, n_plans: int, seed: int) -> list[dict[str, Format]]:
    return design_plans("stratified", LAYERS, menus, n_plans=n_plans, seed=seed)


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


@pytest.mark.parametrize(("design", "sets"), [("layer", 12), ("role", 3), ("block", 3)])
def test_one_thing_at_a_time_lowers_every_set_at_every_rate_alone(design: str, sets: int) -> None:
    plans = design_plans(design, LAYERS, MENUS, n_plans=1000, seed=0)
    assert len(plans) == 1 + 4 * sets, "full precision, and every set at 4 rates below"
    assert {str(format) for format in plans[0].values()} == {"asis"}
    key = {"layer": lambda layer: layer.name, "role": lambda layer: layer.role, "block": lambda layer: layer.block}[design]
    lowered = []
    for plan in plans[1:]:
        (format,) = {str(format) for format in plan.values()} - {"asis"}
        names = {name for name, of_layer in plan.items() if str(of_layer) == format}
        (of_set,) = {key(layer) for layer in LAYERS if layer.name in names}
        assert names == {layer.name for layer in LAYERS if key(layer) == of_set}
        lowered.append((format, of_set))
    assert len(set(lowered)) == len(lowered)
    assert [format for format, _ in lowered] == [text for text in ("1x3g2", "1x4g2", "1x5g2", "1x8g2") for _ in range(sets)], (
        "low rates first"
    )


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_repeats_and_begins_with_its_shorter_self(design: str) -> None:
    plans = design_plans(design, LAYERS, MENUS, n_plans=12, seed=5)
    assert design_plans(design, LAYERS, MENUS, n_plans=12, seed=5) == plans
    assert design_plans(design, LAYERS, MENUS, n_plans=7, seed=5) == plans[:7]
    assert design_plans(design, LAYERS, MENUS, n_plans=12, seed=6) != plans
    assert all(set(plan) == set(MENUS) for plan in plans)


def test_an_unknown_design_is_refused() -> None:
    with pytest.raises(InputError, match="`design` 'all' is unknown; choose one of auto, stratified, layer, role, block"):
        check_design("all")
