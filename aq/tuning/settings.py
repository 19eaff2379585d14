"""How to tune: one frozen object, whose tables name every choice there is."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from ...errors import InputError
from ...models.trace import N_PARTS
from .code_steps import CODE_STEPS
from .optimizer_reset import OPTIMIZER_RESETS
from .orders import ORDERS
from .stages import STAGES, WHOLE
from .weighting import WEIGHTINGS

LEAST = {
    **dict.fromkeys(("steps", "judged_images", "refresh_every", "patience", "seed", "learning_rate"), 0),
    **dict.fromkeys(("batch_size", "sampling_steps", "code_every", "check_every"), 1),
}


@dataclass(frozen=True)
class TuneConfig:
    """How to tune.

    Defaults were held against others on mnist-dit (benchmarks/tuning_choices.py; docs/experiments/tuning.md); `code_every` and `code_until`
    come from the trials that stand after them there.

    Args:
        steps: of PV-tuning against the full-precision model; 0 leaves the encodings as they are.
        minutes: as many steps as fit into this time, measured at the beginning, instead of `steps`; a killed tuning goes on when begun again.
        batch_size: images of a step.
        n_images: how many images the full-precision model samples to learn from.
        sampling_steps: of those images; the model's own by default.
        order: in which recorded calls come, a name in ORDERS.
        refresh_every: steps for each time that a quarter of the trajectories makes room for some of the quantized model; 0: never.
        weighting: of timesteps, a name in WEIGHTINGS.
        stages: names in STAGES with their shares of the steps.
        learning_rate: of codebooks, biases and norms relative to their root mean square, of log scales; falls to zero by a cosine.
        code_step: how codes move, a name in CODE_STEPS.
        code_every: P steps between V steps.
        code_until: the share of all steps in which codes move; then the rest settles.
        code_reach: how far noise alone takes the straight-through buffers of codes in all steps, relative to the weights' root mean square.
        code_share: groups that a V step may encode anew.
        trust_ratio: largest relative change of a layer's weights in one V step.
        buffer_decay: of the straight-through buffers, from step to step.
        optimizer_reset: what becomes of the moments of entries that a flip made stale, a name in OPTIMIZER_RESETS.
        ema_decay: of the running mean of all continuous parameters; 0: none is kept.
        check_every: steps between looks at the held-out loss, and between checkpoints.
        patience: looks without a better loss after which tuning ends; 0: never.
        judged_images: sampled of the tuned model and of the untuned one, which is handed out where its images are better; 0: none are.
        gradient_checkpointing: less memory, a forward pass more.
        seed: of every random choice.

    Raises:
        InputError: names the field and what it takes.
    """

    steps: int = 300
    minutes: float | None = None
    batch_size: int = 64

    n_images: int = 1024
    sampling_steps: int | None = None
    order: str = "replay"
    refresh_every: int = 150
    weighting: str = "uniform"
    stages: tuple[tuple[str, float], ...] = (("whole", 1.0),)

    learning_rate: float = 1e-2
    code_step: str = "pv"
    code_every: int = 2
    code_until: float = 0.8
    code_reach: float = 0.15
    code_share: float = 0.2
    trust_ratio: float = 0.02
    buffer_decay: float = 1.0
    optimizer_reset: str = "semi"

    ema_decay: float = 0.0
    check_every: int = 50
    patience: int = 0
    judged_images: int = 64
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise InputError(f"`{name}`: got {value}; give {least} or more")
        for name in ("code_reach", "trust_ratio", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"`{name}`: got {value}; give a number above zero")
        for name in ("code_until", "code_share", "buffer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"`{name}`: got {getattr(self, name)}; give a share above 0 and at most 1")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"`ema_decay`: got {self.ema_decay}; give 0 or more and less than 1")
        if self.n_images < N_PARTS or self.n_images % N_PARTS:
            raise InputError(f"`n_images`: got {self.n_images}; trajectories are of a multiple of {N_PARTS} images")
        tables: dict[str, Collection[str]] = {
            "order": ORDERS,
            "weighting": WEIGHTINGS,
            "code_step": CODE_STEPS,
            "optimizer_reset": OPTIMIZER_RESETS,
        }
        chosen = [(field, getattr(self, field)) for field in tables] + [("stages", stage) for stage, _ in self.stages]
        for field, name in chosen:
            table = tables.get(field, STAGES)
            if name not in table:
                raise InputError(f"tuning: {field} {name!r} is unknown; choose among {', '.join(table)}")
        if self.gradient_checkpointing and any(name != WHOLE for name, _ in self.stages):
            raise InputError("tuning: gradient checkpointing goes with the stage whole alone; leave one of them out")
        if not self.stages or any(share <= 0 for _, share in self.stages):
            raise InputError("tuning: stages need shares above 0")

    @property
    def teacher_rests(self) -> bool:
        """Whether the full-precision model is not needed at every step."""
        return all(name == WHOLE for name, _ in self.stages)

    def stage_at(self, progress: float) -> str:
        """The stage at a part in [0, 1) of all steps."""
        total, passed = sum(share for _, share in self.stages), 0.0
        for name, share in self.stages:
            passed += share / total
            if progress < passed:
                return name
        return self.stages[-1][0]
