"""The table of metrics: all that fitting, designs, verification, comparisons, evaluation and reports know of any of them.

A new metric is a row of METRICS. Where it is the mean of one number an image, `mean_metric` makes the row of that number alone:

    METRICS["brightness"] = mean_metric("brightness", "Brightness", lambda sample: sample.images.double().flatten(1).mean(dim=1))
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from .bootstrap import Estimate, Statistic, difference, half_slices, resampled, resamples
from .fidelity import Kernel, agreement, clip_score, inception_score, kernel_estimate, over_mean, psnr, squared_distances
from .frechet import Resampled
from .inception import N_CLASSES as INCEPTION_CLASSES
from .sample import Reference, Sample


@dataclass(frozen=True)
class Metric:
    """One metric: its names, its direction, and how it is computed from any resample of the images.

    name: in records and arguments; label: in tables and figures; unit: "" for none, "%" for fractions that are shown as percentages.
    evidence: all that the metric takes of the images, (n, …), one row an image and of that image alone, which is kept; None where the sample does not
        have it.
    fits: whether a reference has what the metric holds evidence against.
    statistic: from the evidence and the reference, the value of any resample.
    estimate: from evidence, reference and a seed; None: bootstrapped.
    kept_as: name under which the evidence is stored, where several metrics share it.
    records_excess: whether a probe also records its excess over full precision on the same noise. Only for bootstrapped metrics, whose bias in n and
        most of whose noise are much the same in both.
    is_headline: whether it is among the few numbers at the head of a report.
    """

    name: str
    label: str
    evidence: Callable[[Sample], Tensor | None]
    statistic: Callable[[Tensor, Reference], Statistic]
    estimate: Callable[[Tensor, Reference, int], Estimate] | None = None
    unit: str = ""
    higher_is_better: bool = False
    kept_as: str = ""
    fits: Callable[[Reference], bool] = lambda _: True
    records_excess: bool = False
    is_headline: bool = False

    @property
    def heading(self) -> str:
        """Of a column or an axis."""
        return f"{self.label}, {self.unit}" if self.unit not in ("", "%") else self.label

    @property
    def worsening_heading(self) -> str:
        """Of what images lose."""
        return f"{'Decrease' if self.higher_is_better else 'Increase'} of {self.heading}"

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def sign(self) -> int:
        """What a value is multiplied by where lower is to be better."""
        return -1 if self.higher_is_better else 1

    @property
    def excess_name(self) -> str:
        return f"{self.name}_excess"

    @property
    def evidence_name(self) -> str:
        return self.kept_as or self.name

    def worsening(
        self, a: Tensor, b: Tensor, reference: Reference, *, cycle: int = 1, n_bootstrap: int = 200, seed: int = 0
    ) -> tuple[float, float, float]:
        """How much worse a is than b, in the metric's unit, with a 95 % interval; below zero, a is better.

        Args:
            a, b: evidence of two sets of images, image i of both from the same noise.
            cycle: number of conditions; image i has condition i mod cycle.
        """
        if a.shape != b.shape:
            raise InputError(f"{self.name}: paired images give {tuple(a.shape)} and {tuple(b.shape)} numbers; sample both alike")
        worse, better = (b, a) if self.higher_is_better else (a, b)
        statistics = self.statistic(worse, reference), self.statistic(better, reference)
        return difference(*statistics, len(a), cycle=cycle, n_bootstrap=n_bootstrap, seed=seed)


# -- metrics that are means over images --------------------------------------------------------------------------------------------------


def mean_metric(
    name: str,
    label: str,
    values: Callable[[Sample], Tensor | None],
    *,
    unit: str = "",
    higher_is_better: bool = False,
    is_headline: bool = False,
) -> Metric:
    """The mean of `values` (n,) float64, one an image; None where the sample lacks what they need. The rest are fields of Metric."""
    return Metric(name, label, values, _mean_of_resample, _mean, unit, higher_is_better, is_headline=is_headline)


def _mean_of_resample(values: Tensor, _: Reference) -> Statistic:
    return lambda counts: (counts @ values / counts.sum()).item()


def _mean(values: Tensor, *_: object) -> Estimate:
    first, second = half_slices(len(values))
    halves = values[first].mean().item(), values[second].mean().item()
    return Estimate(values.mean().item(), (values.std() / len(values) ** 0.5).item(), halves)


def _agreement(sample: Sample) -> Tensor | None:
    logits, requested = sample.features.logits, sample.requested
    of_other_classes = logits is None or logits.shape[1] == INCEPTION_CLASSES
    return None if of_other_classes or requested is None or requested.ndim != 1 else agreement(logits, requested)  # type: ignore[arg-type]


def _clip_score(sample: Sample) -> Tensor | None:
    embeddings, prompts = sample.features.embeddings, sample.requested
    return None if embeddings is None or prompts is None or prompts.ndim != 2 else clip_score(embeddings, prompts)


def _psnr(sample: Sample) -> Tensor | None:
    full = sample.full_precision
    return None if full is None else psnr(sample.images, full.images)


def _feature_distance(sample: Sample) -> Tensor | None:
    full = sample.full_precision
    return None if full is None else squared_distances(sample.features.pooled, full.features.pooled)


def _feature_distance_of_resample(squares: Tensor, _: Reference) -> Statistic:
    return lambda counts: (counts @ squares[:, 0] / (counts @ squares[:, 1]).clamp(min=torch.finfo(torch.float64).tiny)).item()


def _mean_feature_distance(squares: Tensor, *_: object) -> Estimate:
    """A ratio of means, whose standard error is by the delta method."""
    distances, powers = squares.unbind(1)
    halves = [over_mean(squares[half]).mean().item() for half in half_slices(len(squares))]
    value = over_mean(squares).mean()
    spread = (distances - value * powers).std() / powers.mean().clamp(min=torch.finfo(torch.float64).tiny)
    return Estimate(value.item(), (spread / len(squares) ** 0.5).item(), (halves[0], halves[1]))


# -- metrics of whole sets ---------------------------------------------------------------------------------------------------------------


def _frechet(features: Tensor, reference: Reference) -> Statistic:
    return Resampled(features, reference.statistics)


def _spatial_frechet(features: Tensor, reference: Reference) -> Statistic:
    assert reference.spatial is not None
    return Resampled(features, reference.spatial)


def _kernel(features: Tensor, reference: Reference) -> Statistic:
    assert reference.features is not None
    return Kernel(features, reference.features)


def _kernel_estimate(features: Tensor, reference: Reference, seed: int) -> Estimate:
    assert reference.features is not None
    return kernel_estimate(features, reference.features, seed=seed)


def _inception_logits(sample: Sample) -> Tensor | None:
    logits = sample.features.logits
    return logits if logits is not None and logits.shape[1] == INCEPTION_CLASSES else None


def _inception_score(logits: Tensor, _: Reference) -> Statistic:
    return lambda counts: inception_score(logits.repeat_interleave(counts.long(), dim=0))


_ROWS = (
    Metric(  # in the features of whichever extractor is used
        "fid", "Fréchet distance", lambda sample: sample.features.pooled, _frechet, kept_as="pooled", records_excess=True, is_headline=True
    ),
    Metric(  # Nash et al. 2021; Inception features only
        "sfid",
        "Spatial Fréchet distance",
        lambda sample: sample.features.spatial,
        _spatial_frechet,
        kept_as="spatial",
        fits=lambda reference: reference.spatial is not None,
    ),
    Metric(
        "kid",
        "KID",
        lambda sample: sample.features.pooled,
        _kernel,
        _kernel_estimate,
        kept_as="pooled",
        fits=lambda reference: reference.features is not None,
    ),
    mean_metric("agreement", "Classifier agreement", _agreement, unit="%", higher_is_better=True, is_headline=True),
    mean_metric("clip_score", "CLIP score", _clip_score, higher_is_better=True, is_headline=True),
    Metric("inception_score", "Inception score", _inception_logits, _inception_score, higher_is_better=True, kept_as="logits"),
    mean_metric("psnr", "PSNR", _psnr, unit="dB", higher_is_better=True),
    Metric(
        "feature_distance",
        "Feature distance",
        _feature_distance,
        _feature_distance_of_resample,
        _mean_feature_distance,
        kept_as="squared_distances",
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}
DEFAULT = "fid"


def metric_of(name: str) -> Metric:
    """The metric of that name. Raises InputError where there is none."""
    if name not in METRICS:
        raise InputError(
            f"metric {name!r} is unknown; choose one of {', '.join(METRICS)}, or add it to METRICS of sensitivity.metrics.registry"
        )
    return METRICS[name]


Evidence = Mapping[str, Tensor]  # all that metrics take of n images, by Metric.evidence_name, one row an image


def evidence_of(sample: Sample) -> dict[str, Tensor]:
    """What metrics take of a sample. That of several samples, one below the other, is that of all their images."""
    found: dict[str, Tensor] = {}
    for metric in METRICS.values():
        if metric.evidence_name not in found and (evidence := metric.evidence(sample)) is not None:
            found[metric.evidence_name] = evidence
    return found


def measure(sample: Sample, *, seed: int, n_bootstrap: int = 20) -> dict[str, Estimate]:
    """Every metric that the sample allows, by name: `measure_evidence` of it, and of full precision where that is given."""
    full = sample.full_precision
    return measure_evidence(
        evidence_of(sample),
        sample.reference,
        full_precision=None if full is None else evidence_of(full),
        known=None if full is None else full.known,
        cycle=sample.cycle,
        seed=seed,
        n_bootstrap=n_bootstrap,
    )


def measure_evidence(
    evidence: Evidence,
    reference: Reference,
    *,
    full_precision: Evidence | None = None,
    known: dict[Hashable, Tensor] | None = None,
    cycle: int = 1,
    seed: int,
    n_bootstrap: int = 20,
) -> dict[str, Estimate]:
    """Every metric that images allow, by name.

    Args:
        full_precision: evidence of the full-precision model on the same noise.
        known: values of full precision on resamples, kept for other evidence that is held against the same.
        cycle: number of conditions; image i has condition i mod cycle.
        seed: of the bootstrap and of the kernel distance's subsets.

    Returns:
        Beside fid, `fid_excess`: fid less that of full precision on the same noise, where that is given. The bootstrap's se of fid is 1.0 to 1.1
        times the true spread for n = 512, d = 128.
    """
    known = {} if known is None else known
    counts = resamples(len(next(iter(evidence.values()))), n_bootstrap, seed, cycle)
    found: dict[str, Estimate] = {}
    for metric in METRICS.values():
        own = evidence.get(metric.evidence_name)
        if own is None or not metric.fits(reference):
            continue
        if metric.estimate is not None:
            found[metric.name] = metric.estimate(own, reference, seed)
            continue
        values = resampled(metric.statistic(own, reference), counts)
        found[metric.name] = Estimate.of(values)
        if metric.records_excess and full_precision is not None:
            key = (metric.name, id(reference), cycle, n_bootstrap, seed)
            if key not in known:
                known[key] = resampled(metric.statistic(full_precision[metric.evidence_name], reference), counts)
            found[metric.excess_name] = Estimate.of(values - known[key])
    return found
