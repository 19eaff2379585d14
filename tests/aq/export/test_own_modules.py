"""Quantized layers of a model that is no diffusers model: they are given back to the user's own code, when the user names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from sedaq.aq.export.apply import apply
from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan
from sedaq.aq.plans.store import EncodingStore
from sedaq.errors import InputError
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.loading import load
from sedaq.models.manifest import MANIFEST_FILE

OWN = """
import torch
from torch import nn
from sedaq import Subject
from sedaq.models.noise import image_noise

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16))

    def sample(*, seed, start, n_images, steps=None):
        return net(image_noise(seed, start, n_images, (16,))).sigmoid().reshape(n_images, 1, 4, 4)

    return Subject(net, sample=sample, name="own")
"""


def test_a_module_of_ones_own_is_written_and_put_back(tmp_path: Path) -> None:
    """It is no diffusers model: `load` gives the layers back to what FILE.py:FUNCTION makes, in this process and in another."""
    (tmp_path / "own.py").write_text(OWN)
    text = f"{tmp_path / 'own.py'}:make"
    subject = load(text)
    store = EncodingStore(subject, tmp_path / "run", calibration={"n_images": 2})
    plan = Plan.of(subject, {"0": Format.parse("1x3g4"), "2": Format.parse("int8")}, encoding=store.identity)
    apply(subject, plan, store, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS_FILE).stat().st_size == plan.size_bytes
    wanted = {layer.name: store.get(layer, plan.formats[layer.name]).dequantize() for layer in subject.layers}
    with subject.weights_replaced(wanted):
        expected = subject.sample(seed=0, n_images=2)
    for found in (load(text, weights=tmp_path / "out"), load(load(text), weights=tmp_path / "out")):
        torch.testing.assert_close(found.sample(seed=0, n_images=2), expected, atol=1e-6, rtol=1e-5)
    for quantized, words in ((False, "already quantized"), (True, "holds quantized layers of your own code")):
        with pytest.raises(InputError, match=rf"{words}; pass .*own.py:make, which it was made from, and the folder as `weights`"):
            load(tmp_path / "out", quantized=quantized)
    tensors = safetensors.torch.load_file(tmp_path / "out" / WEIGHTS_FILE)
    del tensors["1.bias"]
    safetensors.torch.save_file(tensors, tmp_path / "out" / WEIGHTS_FILE)
    with pytest.raises(InputError, match=f"{WEIGHTS_FILE}: does not hold the bytes that sedaq wrote"):
        load(text, weights=tmp_path / "out")
    (tmp_path / "out" / MANIFEST_FILE).unlink()
    with pytest.raises(InputError, match="its tensors are not those of this module"):
        load(text, weights=tmp_path / "out")
    with pytest.raises(InputError, match=r"config.json: cannot be read|holds no quantized layers"):
        load(text, weights=tmp_path)
