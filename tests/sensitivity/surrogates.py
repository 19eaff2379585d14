"""A subject whose additive model is known: probes for tests of what is fitted to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import Entry
from sedaq.sensitivity.predictor.additive import Additive, Labels, LayerPriors
from sedaq.sensitivity.probing.probes import LayerTable, Probes

N_LAYERS = 6
RATES = (1.5, 2.0, 3.0, 4.0, 16.0)
ERRORS = {1.5: 0.4, 2.0: 0.25, 3.0: 0.1, 4.0: 0.04, 16.0: 0.0}
MENU = [Entry(rate, Format("asis") if rate == 16 else Format.parse(f"1x{i}g2"), i, i) for i, rate in enumerate(RATES, start=3)]
NAMES = [f"blocks.{i}.l" for i in range(N_LAYERS)]
SLOPES = np.array([0.1, 4.0, 1.0, 0.3, 2.0, 0.02])
POWER, SATURATION, EXPONENT, FULL_PRECISION = 1.6, 3.0, 1.2, 4.0


def known_surrogate() -> Additive:
    logs = np.full(N_LAYERS, np.mean([np.log(e) for e in ERRORS.values() if e]))
    return Additive.straight(np.log(SLOPES), np.full(N_LAYERS, EXPONENT), POWER, SATURATION, logs)


def table(informed: bool = True) -> LayerTable:
    """Priors that know the slopes up to a factor, or nothing."""
    menu = np.array([e for e in ERRORS.values()])
    scores = [menu * (slope**2 * (1.5 if i % 2 else 0.7) if informed else 1.0) for i, slope in enumerate(SLOPES)]
    return LayerTable(
        NAMES,
        ["even" if i % 2 == 0 else "odd" for i in range(N_LAYERS)],
        [f"blocks.{i // 2}" for i in range(N_LAYERS)],
        LayerPriors.of([menu] * N_LAYERS, scores),
    )


def random_probes(n: int, *, seed: int = 0, noise: float = 0.02, informed: bool = True) -> Probes:
    """Plans over random rates, the first one of full precision."""
    rng = np.random.default_rng(seed)
    rates = rng.choice(RATES, size=(n, N_LAYERS))
    rates[0] = 16.0
    return probes_at(rates, rng, noise=noise, informed=informed)


def probes_at(rates: np.ndarray, rng: np.random.Generator, *, noise: float = 0.02, informed: bool = True) -> Probes:
    """Plans of these rates, (n, layers); excess by the additive model, off by relative `noise` in each half of the images."""
    n = len(rates)
    errors = np.vectorize(ERRORS.get)(rates)
    truth = known_surrogate().excess(errors)
    halves = truth[:, None] * (1 + noise * 2**0.5 * rng.normal(size=(n, 2)))
    excess = halves.mean(1)
    return Probes(
        [str(i) for i in range(n)],
        table(informed),
        rates,
        errors**0.5,
        errors,
        errors,
        rates.mean(1),
        Labels.of(excess, noise * truth + 1e-3, FULL_PRECISION),
        halves,
    )


def clashing_probes(n: int, *, seed: int = 0) -> Probes:
    """Low rates of layers 0 and 3, harmless apart, together triple a plan's cost: work for trees."""
    probes = random_probes(n, seed=seed)
    clash = (probes.rates[:, 0] < 2.5) & (probes.rates[:, 3] < 2.5)
    return replace(probes, labels=Labels.of(probes.labels.excess * np.where(clash, 3.0, 1.0), probes.labels.se, FULL_PRECISION))


def error_of(_: str, entry: Entry) -> float:
    return ERRORS[entry.rate]
