"""Stroke and slant on drawn figures whose values are known, and captions that follow them."""

from __future__ import annotations

import math
import re

import pytest
import torch

from sedaq.models.loading import SHIPPED_FOLDER, load
from sedaq.models.sampling import SamplingConfig
from sedaq.models.shipped import captions
from sedaq.models.shipped.captions import SLANTS, STROKES, caption, full_captions, slant, slants_of, stroke_width, strokes_of


def bar(width: float, shear: float, n: int = 28) -> torch.Tensor:
    """A bar of the given width that moves `shear` pixels to the right per pixel upwards, antialiased, (1, 1, n, n)."""
    y, x = torch.meshgrid(torch.arange(n, dtype=torch.double), torch.arange(n, dtype=torch.double), indexing="ij")
    distance = (x - n / 2 + shear * (y - n / 2)).abs() / math.hypot(1, shear)
    ink = (0.5 + width / 2 - distance).clamp(0, 1) * ((y > 5) & (y < n - 5))
    return ink.reshape(1, 1, n, n)


@pytest.mark.parametrize("width", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_the_width_of_a_bar(width: float, shear: float) -> None:
    assert stroke_width(bar(width, shear)).item() == pytest.approx(width, rel=0.2)


@pytest.mark.parametrize("shear", [-0.4, 0.0, 0.1, 0.4])
def test_the_slant_of_a_bar(shear: float) -> None:
    assert slant(bar(3, shear)).item() == pytest.approx(shear, abs=0.02)


def test_classes_of_bars() -> None:
    bars = torch.cat([bar(1.5, -0.3), bar(2.9, 0.1), bar(4.0, 0.5)])
    assert [SLANTS[i] for i in slants_of(bars)] == ["leaning left", "upright", "leaning right"]
    found = [STROKES[i] for i in strokes_of(bars)]
    assert found[0] == "thin" and found[2] == "thick"


def test_an_empty_image_has_numbers_too() -> None:
    assert torch.isfinite(stroke_width(torch.zeros(1, 1, 8, 8))).all() and torch.isfinite(slant(torch.zeros(1, 1, 8, 8))).all()


def test_captions_name_what_is_known() -> None:
    assert caption(3, 0, 1) == "a thin handwritten three, upright" and caption(0, None, None) == "a handwritten zero"
    assert len(set(full_captions())) == 90 and len(set(captions.all_captions())) == 160
    assert set(full_captions()) <= set(captions.all_captions())


def test_shipped_folders_name_no_place_on_the_machine_that_made_them() -> None:
    found = [path for path in SHIPPED_FOLDER.rglob("*.json") if re.search(r'"/\w+/', path.read_text(encoding="utf-8"))]
    assert len(list(SHIPPED_FOLDER.rglob("config.json"))) > 8 and found == []


@pytest.mark.parametrize(("name", "component"), [("digits-sd", "unet"), ("digits-mmdit", "transformer")])
def test_the_shipped_pipelines_draw_what_their_captions_say(name: str, component: str) -> None:
    """Of 20 images a random guess gets two digits right, and seven slants."""
    from sedaq.sensitivity.metrics.extractors import load_extractor

    subject = load(name)
    assert subject.conditions == full_captions() and (subject.components, subject.extractor) == ((component,), "embedded")
    images = subject.sample(SamplingConfig(steps=8, batch_size=20), seed=0, n_images=20)
    assert images.shape == (20, 1, 32, 32)
    logits = load_extractor("embedded", image_shape=(1, 32, 32))(images).logits
    assert logits is not None and (logits.argmax(1) == torch.arange(20) % 10).sum() >= 17
    wanted = torch.tensor([(i + i // 10) % 3 for i in range(20)])
    assert (slants_of(images[..., 2:-2, 2:-2]) == wanted).sum() >= 13
