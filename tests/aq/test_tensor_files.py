"""Safetensors files written tensor by tensor are the library's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from sedaq.aq.tensor_files import write_tensors_in_turn
from sedaq.errors import SedaqError


@pytest.mark.parametrize("n", [0, 1, 7])
def test_tensors_written_in_turn_make_the_librarys_file(n: int, tmp_path: Path) -> None:
    torch.manual_seed(n)
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.int8]
    tensors = {f"layer{i}.{'ü' * i}": (100 * torch.randn(tuple(range(1, i + 1)))).to(dtypes[i]) for i in range(n)}
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors_in_turn(tmp_path / "a", specs, tensors.__getitem__, {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == safetensors.torch.save(tensors, {"format": "pt"})


def test_a_tensor_that_is_not_as_announced(tmp_path: Path) -> None:
    with pytest.raises(SedaqError, match="tensor a is torch.float32"):
        write_tensors_in_turn(tmp_path / "a", {"a": (torch.float16, (2,))}, lambda _: torch.zeros(2), {})
