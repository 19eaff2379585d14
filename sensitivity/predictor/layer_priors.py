"""What the additive model knows of layers beforehand: from gradient scores, or from what other models taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LearntLayers:
    """What a learnt prior says of a model's layers, (layers,) each, in logarithms of the effect over full precision's own distance.

    log_slopes: at each layer's mean log error ē_l. exponents: by how much they rise with the log error. widths, exponent_width: standard deviations of a
    layer's slope about its model's level, and of the logarithm of its exponent. level: of the model. corpus: fingerprint of what taught it.
    """

    log_slopes: Array
    exponents: Array
    widths: Array
    exponent_width: float
    level: float
    corpus: str

    def to_json(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("log_slopes", "exponents", "widths")}
        return {**arrays, "exponent_width": self.exponent_width, "level": self.level, "corpus": self.corpus}

    def drawn(self, rng: np.random.Generator) -> LearntLayers:
        """One draw of the layers from their widths; the model's level is left as it is."""
        n = len(self.widths)
        slopes = self.log_slopes + self.widths * rng.normal(size=n)
        return replace(self, log_slopes=slopes, exponents=self.exponents * np.exp(self.exponent_width * rng.normal(size=n)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LearntLayers:
        arrays = {name: np.array(content[name], dtype=float) for name in ("log_slopes", "exponents", "widths")}
        return cls(**arrays, exponent_width=float(content["exponent_width"]), level=float(content["level"]), corpus=str(content["corpus"]))


@dataclass(frozen=True)
class LayerPriors:
    """What the fit knows of layers beforehand, (layers,) each.

    log_errors: ē_l, mean log error over the menu. log_scores: mean log gradient score over the menu. learnt: of other models, None where nothing is.
    """

    log_errors: Array
    log_scores: Array
    learnt: LearntLayers | None = None

    @classmethod
    def of(cls, errors: Sequence[Array], scores: Sequence[Array], learnt: LearntLayers | None = None) -> LayerPriors:
        """From the errors and scores of each layer's menu. A layer without error gets the least of the others."""
        return cls(mean_logs(errors), mean_logs(scores), learnt)

    def drawn(self, rng: np.random.Generator) -> LayerPriors:
        """What the layers might be beforehand: a draw where widths are known, the same priors where they are not."""
        return self if self.learnt is None else replace(self, learnt=self.learnt.drawn(rng))

    @property
    def slopes(self) -> Array:
        """What θ_l is thought to be, but for a common level and factor: centred."""
        slopes = self.log_scores if self.learnt is None else self.learnt.log_slopes
        return np.asarray(slopes - slopes.mean())

    @property
    def relative_widths(self) -> Array:
        """By how much a layer may deviate from that more or less than others; 1 for all where only scores are known."""
        return np.ones(len(self.log_errors)) if self.learnt is None else self.learnt.widths / self.learnt.widths.mean()

    def log_exponents(self, usual: float) -> Array:
        """log p_l beforehand; `usual` for all where nothing is learnt."""
        return np.full(len(self.log_errors), np.log(usual)) if self.learnt is None else np.log(self.learnt.exponents)


def mean_logs(values: Sequence[Array]) -> Array:
    """Mean logarithm of what is above zero in each; where there is nothing, the least of the others."""
    means = np.array([np.log(v[v > 0]).mean() if (v > 0).any() else np.nan for v in values])
    return np.where(np.isfinite(means), means, np.nanmin(means) if np.isfinite(means).any() else 0.0)
