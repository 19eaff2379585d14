"""Fixtures of the GPU kernels' tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sedaq.kernels import gpu_tiles


@pytest.fixture(scope="module")
def bfloat16_in_the_interpreter():
    """Triton's interpreter keeps bfloat16 as 16-bit integers and adds and multiplies these as such; here, what the numbers stand for."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def widened(handle):
        if handle.dtype.scalar.name != "bf16":
            return handle.data
        return torch.from_numpy(np.ascontiguousarray(handle.data).view(np.int16)).view(torch.bfloat16).float().numpy()

    def fadd(self, a, b):
        sums = widened(a) + widened(b)
        if a.dtype.scalar.name == "bf16":
            sums = torch.from_numpy(sums).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(sums, a.dtype.scalar)

    def dot(self, a, b, d, *_):
        return interpreter.TensorHandle(np.matmul(widened(a), widened(b), dtype=np.float32) + d.data, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_fadd", fadd)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        yield


@pytest.fixture
def own_tiles(monkeypatch, tmp_path):
    monkeypatch.delenv("SEDAQ_KERNEL", raising=False)
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path))
    gpu_tiles._measured.cache_clear()
