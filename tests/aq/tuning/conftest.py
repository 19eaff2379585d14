"""Codes to tune."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.tunable import TunableLayer
from sedaq.aq.tuning.tuned import Tuned

SMALL = TuneConfig(steps=30, batch_size=16, n_images=32, sampling_steps=4, check_every=10)


@pytest.fixture
def small() -> TuneConfig:
    """A tuning of two seconds."""
    return SMALL


@pytest.fixture
def encodings(subject) -> dict[str, Encoding]:
    """Coarse additive codes, and every seventh layer int8 or as it is."""
    texts = {3: "int8", 6: "asis"}
    return {
        layer.name: encode(subject.weight(layer.name), Format.parse(texts.get(i % 7, ("1x3g4", "1x4g4m", "1x4g4q")[i % 3])))
        for i, layer in enumerate(subject.layers)
    }


@pytest.fixture(scope="session")
def tunable() -> Callable[..., TunableLayer]:
    """A layer of random weights in a format; its fourth row is zero."""

    def made(text: str, shape: tuple[int, ...] = (32, 24)) -> TunableLayer:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        weight[3] = 0
        return TunableLayer(encode(weight, Format.parse(text)))

    return made


@pytest.fixture(scope="session")
def equal() -> Callable[[Encoding, Encoding], bool]:
    """Whether two encodings store the same."""
    return lambda a, b: (
        a.format == b.format
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())
    )


@pytest.fixture
def alike(equal):
    """Whether two tunings gave the same."""

    def same(a: Tuned, b: Tuned) -> bool:
        return (
            a.losses == b.losses
            and all(equal(encoding, b.encodings[name]) for name, encoding in a.encodings.items())
            and all(torch.equal(tensor, b.others[name]) for name, tensor in a.others.items())
        )

    return same
