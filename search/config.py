"""What a search is told: its budget, and everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..aq.formats import Format
from ..errors import InputError
from .budgets import parse_size

N_TRIALS = 200
RISK = 1.0  # standard deviations that a plan's prediction is raised by before plans are compared


@dataclass(frozen=True)
class Budget:
    """What a plan may use; one bound or several.

    Args:
        bits: total bits per weight, at most.
        size: bytes of the denoiser's file, at most: a number, or text such as 2MB or 2MiB.
        pipeline_size: bytes of the whole pipeline's folder, at most.
        ms_per_step: milliseconds of a sampling step on this machine, at most, as predicted.
        step_images: images at once that the milliseconds are for.

    Raises:
        InputError: no bound is given, or one is not above zero.

    Example:
        >>> Budget(size="1.5MiB").size_bytes
        1572864
    """

    bits: float | None = None
    size: str | int | None = None
    pipeline_size: str | int | None = None
    ms_per_step: float | None = None
    step_images: int = 64

    def __post_init__(self) -> None:
        if not any(bound is not None for bound in (self.bits, self.size, self.pipeline_size, self.ms_per_step)):
            raise InputError("no budget is given; pass `bits`, `size`, `pipeline_size`, `ms_per_step` or several of them")
        for name in ("bits", "ms_per_step", "step_images"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"`{name}`: got {value!r}; give a number above zero")
        _ = self.size_bytes, self.pipeline_bytes

    @property
    def size_bytes(self) -> int | None:
        """Of the denoiser's file."""
        return None if self.size is None else parse_size(str(self.size))

    @property
    def pipeline_bytes(self) -> int | None:
        """Of the pipeline's folder."""
        return None if self.pipeline_size is None else parse_size(str(self.pipeline_size))


def check_verify(n: int) -> None:
    """Raise InputError for too few samplings of a verification."""
    if n < 2:
        raise InputError(f"`verify` {n}: a verification measures the uniform plan and at least one other; use 0 or at least 2")


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Args:
        pin: give layers this format whose path matches a glob.
        keep: leave layers as they are whose path matches a glob.
        tie: layers that match one glob share a rate.
        min_rate: no layer below this rate.
        max_rate: no layer above this rate.
        solver: which one: exact, optuna or auto.
        trials: of Optuna, for each budget.
        risk: standard deviations that predictions are raised by before plans are compared.
        storage: keep a copy of Optuna's studies there, a journal file or a database URL.
        verify: plans to sample at most, the uniform one included; what is measured refits the predictor.
        images: of each of them; as many as a probe by default.
        activations: bits that the inputs of layers are rounded to, 8 or 6, but for those that measure most sensitive.
        activation_schemes: which schemes layers choose from: token (8 bits of it run on 8-bit kernels), token-affine, step, step-affine; all by default.
        tuned: search for the model that tuning makes, by probes that were measured with `tuned_steps`.
        tune_steps: of the model that is handed out: verification tunes the best of its plans longer and longer, until the last have had so many.
        seed: of every random choice.

    Raises:
        InputError: a pinned format that does not exist, or schemes without `activations`.
    """

    pin: Mapping[str, str | Format] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    min_rate: float | None = None
    max_rate: float | None = None
    solver: str = "auto"
    trials: int = N_TRIALS
    risk: float = RISK
    storage: str | None = None
    verify: int = 0
    images: int | None = None
    activations: int | None = None
    activation_schemes: tuple[str, ...] | None = None
    tuned: bool = False
    tune_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.pinned
        for name, low in (("trials", 0), ("risk", 0), ("verify", 0), ("images", 8), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise InputError(f"`{name}`: got {value!r}; give {low} or more")
        if self.verify:
            check_verify(self.verify)
        for name in ("keep", "tie"):
            if isinstance(getattr(self, name), str):
                raise InputError(f"`{name}`: got one text; give a list of globs")
        if self.tune_steps is not None and not (self.tuned and self.verify):
            raise InputError("`tune_steps`: it is for the verification of tuned plans; give `tuned` and `verify`, too")
        if self.activation_schemes is not None and self.activations is None:
            raise InputError("`activation_schemes`: they are for `activations`; give it, too")

    @property
    def pinned(self) -> dict[str, Format]:
        """Format by glob."""
        return {glob: format if isinstance(format, Format) else Format.parse(format) for glob, format in self.pin.items()}

    @property
    def options(self) -> dict[str, Any]:
        """As find_plan and find_front take them."""
        return {
            "pins": self.pinned,
            "keep": self.keep,
            "ties": self.tie,
            "min_rate": self.min_rate,
            "max_rate": self.max_rate,
            "solver": self.solver,
            "n_trials": self.trials,
            "risk": self.risk,
            "storage": self.storage,
            "seed": self.seed,
        }
