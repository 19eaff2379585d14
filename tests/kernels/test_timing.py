"""Timing: devices are waited for, and medians are of rounds in turn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sedaq.kernels import timing
from sedaq.kernels.timing import clock, interleaved_medians


def test_the_clock_waits_for_the_device(monkeypatch) -> None:
    waited = []
    monkeypatch.setattr(torch, "get_device_module", lambda kind: SimpleNamespace(synchronize=waited.append))
    first = clock()
    assert clock("cpu") >= first and waited == []
    clock("cuda:1")
    assert waited == ["cuda:1"]


def test_medians_are_of_rounds_in_turn_without_the_first(monkeypatch) -> None:
    now, calls = [0.0], []
    lengths = {"a": iter([9.0, 1.0, 2.0, 6.0]), "b": iter([9.0, 0.25, 0.75, 0.5])}
    monkeypatch.setattr(timing, "clock", lambda device: now[0])

    def run(name: str) -> None:
        calls.append(name)
        now[0] += next(lengths[name])

    found = interleaved_medians({name: lambda name=name: run(name) for name in lengths}, repeats=3)
    assert found == pytest.approx({"a": 2000.0, "b": 500.0}) and "".join(calls) == "ab" * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_work_on_a_gpu_counts() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    start = clock("cuda")
    for _ in range(20):
        x = x @ x * 1e-3
    given = timing.time.perf_counter() - start
    assert clock("cuda") - start > given
