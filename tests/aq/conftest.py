"""A tiny diffusers model in a folder, and brute-force helpers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sedaq.aq.plan import Plan
from sedaq.aq.store import EncodingStore
from sedaq.models.loading import load
from sedaq.models.subject import Subject

CALIBRATION = {"seed": 0, "n_images": 8, "steps": 2}


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory) -> Path:
    """A class-conditional transformer with one block of width 32 on 8×8 images, weights stored in fp16."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    folder = tmp_path_factory.mktemp("models") / "tiny-dit"
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=1,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=4,
    )
    model.half().save_pretrained(folder)
    DDIMScheduler(num_train_timesteps=100).save_pretrained(folder)
    return folder


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
    from sedaq.aq.formats import Format

    texts = ["1x4g4", "int8", "asis", "1x4g4h", "1x5g4q", "2x4g8m"]
    formats = {layer.name: Format.parse(texts[i % len(texts)]) for i, layer in enumerate(subject.layers)}
    return Plan.of(subject, formats, encoding=store.identity)
