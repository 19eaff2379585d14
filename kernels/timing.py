"""Seconds and milliseconds of work, on processors and on devices that are given work ahead."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def clock(device: torch.device | str = "cpu") -> float:
    """Seconds of a clock that only differences mean something of, read once `device` has done all that it was given.

    A GPU is given work ahead of time: without waiting for it, only the giving would be timed.
    """
    kind = torch.device(device).type
    if kind != "cpu":
        torch.get_device_module(kind).synchronize(device)
    return time.perf_counter()


def interleaved_medians(functions: Mapping[Key, Callable[[], Any]], repeats: int, device: torch.device | str = "cpu") -> dict[Key, float]:
    """Milliseconds of each function: A B C A B C …, one round to warm up, then the median of `repeats` rounds."""
    times: dict[Key, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            start = clock(device)
            function()
            if round_ > 0:
                times[name].append(1e3 * (clock(device) - start))
    return {name: statistics.median(values) for name, values in times.items()}
