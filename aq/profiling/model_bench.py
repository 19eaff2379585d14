"""Time, memory and operations of whole models: full precision and quantized, in each class of arithmetic, in one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from ...errors import InputError
from ...kernels.timing import clock
from ...models.hooks import add_hooks
from ...models.loading import load
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...progress import track
from ...runtime.executors import Processes
from ..modules.layers import quantized_modules
from .operations import Operations, described, modules_of, of_module, tokens_counted
from .step_times import timed

# What a denoiser computes in. Of quantized layers: their class "exact", "bf16" or "a8"; other layers stay in float32 under "a8".
ARITHMETICS = ("float32", "bfloat16", "a8")
STEPS = 4


def model_steps(
    names: Sequence[str], *, arithmetics: Sequence[str] = ("float32",), n_images: int = 64, repeats: int = 5
) -> list[dict[str, Any]]:
    """Every model in every arithmetic; "a8" is for models with codes only, others leave it out.

    Seconds of a sampling step are medians over interleaved samplings of `n_images` images at once with 4 steps. Memory is the most that a
    process of its own takes for loading and one step, beyond what it takes without a model. Operations are of one image and one step.

    Returns:
        rows {subject, arithmetic, n_images, threads, seconds_per_step, peak_bytes, operations, layers: [{name, planned, shape, tokens,
        operations, ms}]}. Raises InputError for an unknown arithmetic.
    """
    unknown = set(arithmetics) - set(ARITHMETICS)
    if unknown:
        raise InputError(f"arithmetic {sorted(unknown)[0]!r} is unknown; choose among {', '.join(ARITHMETICS)}")
    cases = [(name, arithmetic) for name in names for arithmetic in arithmetics]
    subjects = {case: _prepared(*case) for case in cases}
    subjects = {case: subject for case, subject in subjects.items() if case[1] != "a8" or quantized_modules(subject.denoiser)}
    if not subjects:
        raise InputError(f"arithmetic a8 is for models with codes, and none of {', '.join(names)} has any; apply a plan first")
    counted = {case: _counted(subject, n_images) for case, subject in subjects.items()}  # warms up, too
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in subjects}
    for case in track([case for _ in range(repeats) for case in subjects], "sampling steps"):
        device = next(subjects[case].denoiser.parameters()).device
        start = clock(device)
        _step(subjects[case], n_images, STEPS)
        seconds[case].append((clock(device) - start) / STEPS)
    rows = []
    for case in subjects:
        rows.append(
            {"subject": case[0], "arithmetic": case[1], "n_images": n_images, "threads": torch.get_num_threads()}
            | {"seconds_per_step": statistics.median(seconds[case]), "peak_bytes": _in_own_process(*case, n_images), **counted[case]}
        )
    return rows


def _prepared(name: str, arithmetic: str) -> Subject:
    subject = load(name, quantized=True)
    for module in quantized_modules(subject.denoiser).values():
        module.precision = {"float32": "exact", "bfloat16": "bf16", "a8": "a8"}[arithmetic]
    if arithmetic == "bfloat16":
        in_bfloat16(subject.denoiser)
    return subject


def in_bfloat16(denoiser: nn.Module) -> None:
    """Cast a denoiser, and what goes in and comes out: schedulers stay in float32."""
    nn.Module.to(denoiser, torch.bfloat16)  # diffusers' own warns of layers to be kept in float32, also where there are none

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(cast(a, torch.bfloat16) for a in args), {name: cast(value, torch.bfloat16) for name, value in kwargs.items()}

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output.float()
        if isinstance(output, tuple):
            return tuple(cast(part, torch.float32) for part in output)
        output.sample = output.sample.float()
        return output

    add_hooks(denoiser, before={"": before}, after={"": after})


def _step(subject: Subject, n_images: int, steps: int) -> None:
    subject.sample(SamplingConfig(steps=steps, batch_size=n_images), seed=0, n_images=n_images)


def _counted(subject: Subject, n_images: int) -> dict[str, Any]:
    """Operations of one image, and milliseconds a step of every layer, each timed on its way."""
    modules: dict[str, Any] = modules_of(subject.denoiser)
    with tokens_counted(subject.denoiser, modules) as tokens:
        _step(subject, 1, 1)
    with timed(subject.denoiser, modules) as ms:
        _step(subject, n_images, STEPS)
    total, layers = Operations(), []
    for name, module in modules.items():
        of_layer = of_module(module, tokens[name])
        total += of_layer
        layers.append({"name": name, **described(module), "tokens": tokens[name], "operations": of_layer.row(), "ms": ms[name] / STEPS})
    return {"operations": total.row(), "layers": layers}


def _in_own_process(name: str, arithmetic: str, n_images: int) -> int:
    """The memory that `_peak_bytes` finds, in a process that has held nothing else."""
    with Processes(1).workers(_peak_bytes, name=lambda case: f"memory of {case[0]} in {case[1]}") as run:
        ((_, peak),) = run([(name, arithmetic, n_images)])
    return peak


def _peak_bytes(case: tuple[str, str, int]) -> int:
    """The most memory of this process beyond what it has now. `case`: the model, the arithmetic, and images at once."""
    name, arithmetic, n_images = case
    before = psutil.Process().memory_info().rss
    _step(_prepared(name, arithmetic), n_images, 1)
    return _max_memory() - before


def _max_memory() -> int:
    """Resident bytes that this process had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux rusage also counts what the parent had when it forked
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
