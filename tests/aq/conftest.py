"""A tiny diffusers model in a folder, and brute-force helpers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sedaq.aq.export.apply import apply
from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan
from sedaq.aq.plans.store import EncodingStore
from sedaq.models.loading import load
from sedaq.models.subject import Subject

from ..builders import dit, save_denoiser

CALIBRATION = {"seed": 0, "n_images": 8, "steps": 2}
SHARED_FORMATS = {"to_q": "1x6g4q@attention-query", "to_k": "2x4g4m@attention-key", "to_v": "1x5g4@attention-value"}


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory) -> Path:
    """A class-conditional transformer with one block of width 32 on 8×8 images, weights stored in fp16."""
    torch.manual_seed(0)
    return save_denoiser(dit(4, width=32).half(), tmp_path_factory.mktemp("models") / "tiny-dit")


@pytest.fixture
def subject(dit_folder) -> Subject:
    return load(dit_folder)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """Encodings made once for all tests that use the tiny transformer."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def store(subject, run_folder) -> EncodingStore:
    return EncodingStore(subject, run_folder, calibration=CALIBRATION)


@pytest.fixture
def mixed_plan(subject, store) -> Plan:
    """Additive, int8 and as-is layers in one plan."""
    texts = ["1x4g4", "int8", "asis", "1x4g4h", "1x5g4q", "2x4g8m"]
    formats = {layer.name: Format.parse(texts[i % len(texts)]) for i, layer in enumerate(subject.layers)}
    return Plan.of(subject, formats, encoding=store.identity)


@pytest.fixture
def quantized(subject, mixed_plan, store, tmp_path) -> Path:
    apply(subject, mixed_plan, store, tmp_path / "quantized")
    return tmp_path / "quantized"


# -- layers that share codebooks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def blocks_folder(tmp_path_factory) -> Path:
    """A class-conditional transformer with three blocks of width 32, the middle one's projections heavy-tailed."""
    torch.manual_seed(0)
    model = dit(4, width=32, n_blocks=3)
    with torch.no_grad():
        for layer in (model.transformer_blocks[1].attn1.to_q, model.transformer_blocks[1].attn1.to_k):
            layer.weight.mul_(torch.randn_like(layer.weight).exp())
    return save_denoiser(model.half(), tmp_path_factory.mktemp("models") / "blocks")


@pytest.fixture(scope="session")
def blocks_run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def blocks(blocks_folder) -> Subject:
    return load(blocks_folder)


@pytest.fixture
def books(blocks, blocks_run) -> EncodingStore:
    return EncodingStore(blocks, blocks_run, calibration=CALIBRATION)


@pytest.fixture
def shared_plan(blocks, books) -> Plan:
    """Attention shares; the value projection of the first block stays by itself, so that the second holds the others' book."""
    formats = {layer.name: Format.parse(SHARED_FORMATS.get(layer.name.rpartition(".")[2], "int8")) for layer in blocks.layers}
    formats["transformer_blocks.0.attn1.to_v"] = Format.parse(SHARED_FORMATS["to_v"].partition("@")[0])
    return Plan.of(blocks, formats, encoding=books.identity)
