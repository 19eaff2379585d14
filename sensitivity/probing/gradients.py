"""How much the denoiser's output moves with each layer's outputs, from one backward pass over its own calls.

For a random v ~ N(0, I), E[(∂⟨v, ε⟩/∂y)²] is the squared norm of the column of the Jacobian of the output ε that belongs to y. With it, what a
layer's error does to ε is known to first order before anything is sampled. Sources: the diagonal Gauss–Newton matrix by random
projections (Martens et al. 2012), and ModelOpt's gradient score Σ g² δy², whose gradient is of a training loss; here there are no data, and
at the teacher the loss of distillation has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...models.calls import answer_of
from ...models.hessian import Hessian
from ...models.hooks import After, hooking
from ...models.layers import EMBEDDING, Layer
from ...models.noise import purpose_seed
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...models.trace import NeverCalledError, Recording, ReplayBuffer

N_IMAGES, N_CALLS, BATCH = 16, 128, 16


def output_gradients(subject: Subject, sampling: SamplingConfig, *, seed: int) -> dict[str, torch.Tensor]:
    """For every layer, per output channel (out,): Σ over an image's tokens of the mean squared Jacobian column, over the mean ‖ε‖².

    Layers that the output does not depend on have zeros. Those of components that are no denoisers, or are not called, have no entry, nor have
    embeddings.
    """
    found: dict[str, torch.Tensor] = {}
    for prefix, part in subject.denoisers.items():
        try:
            of_part = _of_denoiser(part, sampling, seed)
        except NeverCalledError:
            if not prefix:
                raise
            continue  # its layers are thought to be like the others
        found |= {f"{prefix}{name}": gradient for name, gradient in of_part.items()}
    return found


def _of_denoiser(subject: Subject, sampling: SamplingConfig, seed: int) -> dict[str, torch.Tensor]:
    buffer = ReplayBuffer.record(subject, Recording("gradients", N_IMAGES, seed=seed, sampling=sampling))
    rows = torch.randperm(len(buffer), generator=torch.Generator().manual_seed(seed))[:N_CALLS]
    device = next(subject.denoiser.parameters()).device
    rng = torch.Generator().manual_seed(purpose_seed(seed, "gradients"))
    products = [layer for layer in subject.layers if layer.kind != EMBEDDING]
    sums = {layer.name: torch.zeros(layer.shape[0], dtype=torch.float64) for layer in products}
    size = 0.0
    for chosen in rows.split(BATCH):
        call, target = buffer.batch(chosen, device)
        with torch.enable_grad(), _outputs(subject, products) as outputs:
            answer = answer_of(subject.denoiser(**call))
            projection = torch.randn(answer.shape, generator=rng).to(device)
            layers = [layer for layer in products if layer.name in outputs]
            tensors = [y for layer in layers for y in outputs[layer.name]]
            names = [layer.name for layer in layers for _ in outputs[layer.name]]
            gradients = torch.autograd.grad((answer * projection).sum(), tensors, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                axis = 1 if subject.layer(name).kind != "linear" else gradient.ndim - 1
                sums[name] += gradient.double().square().sum([i for i in range(gradient.ndim) if i != axis]).cpu()
        size += target.double().square().sum().item()
    return {name: total / max(size, 1e-30) for name, total in sums.items()}


@contextmanager
def _outputs(subject: Subject, layers: Sequence[Layer]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collect the layers' outputs, each part of the graph even where nothing before it wants a gradient."""
    found: dict[str, list[torch.Tensor]] = {}

    def hook(name: str) -> After:
        def keep(_: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            found.setdefault(name, []).append(output)
            return output

        return keep

    hooks = {layer.name: hook(layer.name) for layer in layers}
    module = subject.denoiser.get_submodule
    tied = {
        alias: hooks[holder] for alias, holder in subject.tied_layers.items() if holder in hooks and module(alias) is not module(holder)
    }
    with hooking(subject.denoiser, after=hooks | tied):
        yield found


def row_errors(difference: torch.Tensor, hessian: Hessian, layer: Layer) -> torch.Tensor:
    """Mean squared error of each output channel, (out,), when the weight is off by `difference` (of the layer's shape)."""
    rows = difference.double().reshape(layer.groups, layer.shape[0] // layer.groups, layer.n_in)
    doubled = Hessian(tuple(block.double() for block in hessian.blocks))
    return (doubled.times(rows) * rows).sum(2).reshape(-1).clamp(min=0)
