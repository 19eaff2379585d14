"""Rounding of a layer's inputs to few bits.

Dynamic schemes take the range from every token as it comes; static ones have a learned range for each bucket of timesteps (as Q-DM and TDQ found that
ranges move with the timestep). Only 8 bits, symmetric, by token is what the kernels of class "a8" compute with; everything else is simulated:
inputs are put on the grid and multiplied as the numbers that they are.

Of a convolution a token is what one position of the output sees. Here each position of the input is put on the grid of the window around it,
which for strided and dilated convolutions is not exactly the window that the kernel rounds.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError, SedaqError
from ...models.hooks import Before, add_hooks, hooking, input_of
from ...storage import fingerprint, tensor_fingerprint
from ..tensor_files import TensorSpec

BITS = range(2, 9)
N_BUCKETS = 8  # of timesteps
ACTIVATION, RANGES = "activation", "ranges"  # names of the module inside of a quantized layer and of its tensor, and so in files
_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True)
class Scheme:
    """static: learned ranges by timestep, else each token's own. affine: from the least to the greatest value, else symmetric about zero."""

    static: bool
    affine: bool


SCHEMES = {
    "token": Scheme(static=False, affine=False),
    "token-affine": Scheme(static=False, affine=True),
    "step": Scheme(static=True, affine=False),
    "step-affine": Scheme(static=True, affine=True),
}


@dataclass(frozen=True)
class Activation:
    """How one layer's inputs are rounded: to `bits`, by a name in SCHEMES."""

    bits: int
    scheme: str = "token"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"activations of {self.bits} bits: choose {BITS[0]} to {BITS[-1]}, or leave the layer's inputs as they are")
        if self.scheme not in SCHEMES:
            raise InputError(f"activation scheme {self.scheme!r} is unknown; choose among {', '.join(SCHEMES)}")

    def __str__(self) -> str:
        return f"{self.bits} bits {self.scheme}"

    @property
    def is_static(self) -> bool:
        """Whether ranges are fixed beforehand, by bucket of timesteps, and stored."""
        return SCHEMES[self.scheme].static

    @property
    def is_affine(self) -> bool:
        """Whether the grid has a zero point of its own."""
        return SCHEMES[self.scheme].affine

    @property
    def is_real(self) -> bool:
        """Whether kernels compute with numbers of so many bits."""
        return self.bits == 8 and self.scheme == "token"

    @property
    def largest(self) -> int:
        """Of the integers: symmetric −largest … largest, affine 0 … largest."""
        return 2**self.bits - 1 if self.is_affine else 2 ** (self.bits - 1) - 1

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """What is stored with the layer, dtype and shape: by bucket the logarithm of the scale, below it the shift where affine."""
        return {RANGES: (torch.float32, (1 + self.is_affine, N_BUCKETS))} if self.is_static else {}


def fake_quantize(x: torch.Tensor, activation: Activation, scale: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
    """x rounded to the grid: scale · {−L … L}, or scale · ({0 … L} + L · shift) where affine.

    Gradients pass through the rounding; by x they are zero where it ends up outside of the grid, by scale and shift as in LSQ and LSQ+ (Esser
    et al. 2020, Bhalgat et al. 2020).
    """
    largest = activation.largest
    offset = largest * shift if activation.is_affine and shift is not None else None
    least = 0 if activation.is_affine else -largest
    steps = x / scale if offset is None else x / scale - offset
    if not steps.requires_grad:  # then nobody else has it, and it is rounded where it is; the numbers are the same
        rounded = steps.round_().clamp_(least, largest)
        return (rounded if offset is None else rounded.add_(offset)).mul_(scale)
    rounded = (steps + (steps.round() - steps).detach()).clamp(least, largest)
    return (rounded if offset is None else rounded + offset) * scale


class Clock:
    """A pre-hook of the denoiser that knows which bucket of timesteps each row of its call is in.

    Args:
        edges: ascending, between buckets.
    """

    def __init__(self, denoiser: nn.Module, edges: tuple[float, ...]) -> None:
        self.edges = torch.tensor(edges)
        self._place = timestep_place(denoiser)
        self.buckets = torch.zeros(1, dtype=torch.long)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[self._place]).detach()
        self.buckets = torch.bucketize(timestep.float().reshape(-1), self.edges.to(timestep.device))

    def of(self, n_rows: int) -> torch.Tensor:
        """Buckets of the rows of a layer's input, which has one, or several one after the other, for each row of the call."""
        n = len(self.buckets)
        if n_rows % n == 0:
            return self.buckets.repeat_interleave(n_rows // n)
        if (self.buckets == self.buckets[0]).all():
            return self.buckets[:1].expand(n_rows)
        raise SedaqError(f"a layer's input has {n_rows} rows where the denoiser was called with {n} of different timesteps")


def timestep_place(denoiser: nn.Module) -> int:
    """Position of the argument `timestep`. Raises InputError where there is none."""
    names = list(inspect.signature(denoiser.forward).parameters)
    if "timestep" not in names:
        raise InputError("the denoiser has no argument `timestep`; choose activations by token")
    return names.index("timestep")


class ActivationQuantizer(nn.Module):
    """Rounds what a layer gets.

    Args:
        window: of a convolution, its taps by axis; empty for Linear. groups: of a grouped one, each of which has ranges of its own.
        tensors: by the names of Activation.tensor_specs.
    """

    def __init__(
        self,
        activation: Activation,
        window: tuple[int, ...] = (),
        groups: int = 1,
        tensors: Mapping[str, torch.Tensor] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.window, self.groups, self.clock = activation, window, groups, clock
        for name in activation.tensor_specs():
            self.register_buffer(name, (tensors or {})[name].clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x with every value at the nearest point of its token's grid; same shape and dtype."""
        wide = x.float()  # grids of 8 bits are finer than 16-bit numbers
        return fake_quantize(wide, self.activation, *(self._static(wide) if self.activation.is_static else self._dynamic(wide))).to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> ActivationQuantizer:
        """Moves take the ranges along; casts leave them as they are stored."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            self.register_buffer(name, tensor.to(self.get_buffer(name).device))
        return self

    def _static(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert self.clock is not None
        buckets = self.clock.of(len(x)).to(x.device)
        shape = (-1, *[1] * (x.ndim - 1))
        log_scale, *shift = (row[buckets].reshape(shape) for row in getattr(self, RANGES))
        return log_scale.exp(), shift[0] if shift else None

    def learnable(self) -> dict[str, nn.Parameter]:
        """Make the stored tensors parameters, and return them by name."""
        for name in list(self._buffers):
            self.register_parameter(name, nn.Parameter(self._buffers.pop(name)))  # type: ignore[arg-type]
        return dict(self.named_parameters())

    @torch.no_grad()
    def _dynamic(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        low, high = torch.aminmax(x.unflatten(1, (self.groups, -1)), dim=2) if self.window else torch.aminmax(x, dim=-1, keepdim=True)
        if not self.activation.is_affine:
            return self._spread(torch.maximum(high, -low), x).clamp(min=1e-12) / self.activation.largest, None
        low, high = -self._spread(-low, x), self._spread(high, x)
        width = (high - low).clamp(min=1e-12)
        return width / self.activation.largest, low / width

    def _spread(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The greatest of each token: of a convolution, of values by group and position, that of each position's window. Broadcastable to x."""
        sides = [side for size in reversed(self.window) for side in (size // 2, (size - 1) // 2)]
        if any(sides):
            values = _POOLS[len(self.window)](F.pad(values, sides, value=-torch.inf), self.window, 1)
        return values if self.groups == 1 else values.repeat_interleave(x.shape[1] // self.groups, 1)

    def extra_repr(self) -> str:
        """The scheme, for repr()."""
        return f"{self.activation.bits} bits, {self.activation.scheme}"


@dataclass(frozen=True)
class ActivationQuantizers:
    """How the inputs of a model's layers are rounded. edges: between buckets of timesteps, none where no layer is static. tensors: of static layers."""

    choices: dict[str, Activation]
    edges: tuple[float, ...] = ()
    tensors: dict[str, dict[str, torch.Tensor]] | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the schemes, the edges of buckets and the ranges."""
        stored = tensor_fingerprint(
            (f"{path}/{name}", t) for path, of in sorted((self.tensors or {}).items()) for name, t in sorted(of.items())
        )
        return fingerprint([{name: vars(choice) for name, choice in self.choices.items()}, self.edges, stored])

    def of(self, names: set[str]) -> ActivationQuantizers:
        """Of some layers alone."""
        kept = {name: tensors for name, tensors in (self.tensors or {}).items() if name in names}
        return ActivationQuantizers({name: choice for name, choice in self.choices.items() if name in names}, self.edges, kept)

    def of_component(self, prefix: str) -> ActivationQuantizers:
        """Of the layers whose paths begin so, by what is left of their paths."""
        mine = self.of({name for name in self.choices if name.startswith(prefix)})
        choices = {name.removeprefix(prefix): choice for name, choice in mine.choices.items()}
        return ActivationQuantizers(choices, self.edges, {name.removeprefix(prefix): of for name, of in (mine.tensors or {}).items()})

    def modules(self, denoiser: nn.Module, device: torch.device | None = None) -> tuple[dict[str, ActivationQuantizer], Clock | None]:
        """One ActivationQuantizer a layer, and the clock that they read; to be attached to `denoiser` or a copy. device: the denoiser's own if None."""
        if not self.choices:
            return {}, None
        device = device or next(denoiser.parameters()).device
        static = any(choice.is_static for choice in self.choices.values())
        clock = Clock(denoiser, self.edges) if static else None
        made = {
            name: activation_quantizer(denoiser.get_submodule(name), choice, (self.tensors or {}).get(name), clock).to(device)
            for name, choice in self.choices.items()
        }
        return made, clock


def activation_quantizer(
    module: Any, choice: Activation, tensors: Mapping[str, torch.Tensor] | None = None, clock: Clock | None = None
) -> ActivationQuantizer:
    """For a Linear or Conv module."""
    return ActivationQuantizer(choice, tuple(getattr(module, "kernel_size", ())), getattr(module, "groups", 1), tensors, clock)


def quantizer_hook(rounding: ActivationQuantizer) -> Before:
    """A hook that rounds a module's input before the module sees it."""
    return lambda module, args, kwargs: ((rounding(input_of(args, kwargs)), *args[1:]), {k: v for k, v in kwargs.items() if k != "input"})


@contextmanager
def attached(denoiser: nn.Module, roundings: Mapping[str, ActivationQuantizer], clock: Clock | None) -> Iterator[None]:
    """Round the inputs of the modules named while the block runs."""
    with hooking(denoiser, before=_hooks(roundings, clock)):
        yield


def attach(denoiser: nn.Module, roundings: Mapping[str, ActivationQuantizer], clock: Clock | None) -> None:
    """Round the inputs of the modules named from now on."""
    add_hooks(denoiser, before=_hooks(roundings, clock))


def _hooks(roundings: Mapping[str, ActivationQuantizer], clock: Clock | None) -> dict[str, Before]:
    clocks: dict[str, Before] = {"": clock} if clock else {}
    return clocks | {name: quantizer_hook(rounding) for name, rounding in roundings.items()}
