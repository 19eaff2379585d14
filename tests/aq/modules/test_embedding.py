"""Tables of embeddings: which are eligible, their menus, and looking rows up in codes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import AQEmbedding, put_dense_layers
from sedaq.aq.modules.quantize import quantize_
from sedaq.aq.plans.menu import MIN_EMBEDDING_RATE, heuristic_menus
from sedaq.models.layers import find_layers
from sedaq.models.subject import Subject


def table(rows: int = 60, width: int = 16) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(rows, width)


class Worded(nn.Module):
    """A table and a product."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.words, self.out = table(rows), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(ids))


@pytest.mark.parametrize("text", ["int8", "1x4g4", "2x4g2h", "1x4g5q"])
def test_rows_are_those_of_the_dequantized_table(text: str) -> None:
    encoding = encode(table().weight.detach(), Format.parse(text))
    layer, ids = AQEmbedding(encoding), torch.tensor([[3, 3, 59], [0, 7, 3]])
    assert torch.equal(layer(ids), encoding.dequantize()[ids])
    assert layer(ids).shape == (2, 3, 16) and layer(torch.tensor(5)).shape == (16,)
    assert layer(torch.empty(0, 2, dtype=torch.long)).shape == (0, 2, 16)
    assert layer.half()(ids).dtype == torch.float16


def test_ids_outside_are_refused() -> None:
    layer = AQEmbedding(encode(table().weight.detach(), Format.parse("int8")))
    with pytest.raises(IndexError):
        layer(torch.tensor([60]))


def test_only_large_tables_are_eligible() -> None:
    assert [layer.kind for layer in find_layers(Worded(40))] == ["embedding", "linear"]
    small = nn.Sequential(nn.Embedding(2, 4), nn.Linear(32, 32))
    assert [layer.kind for layer in find_layers(small)] == ["linear"]


def test_menus_have_no_few_bits_for_them() -> None:
    subject = Subject(Worded(400), sample=lambda **_: torch.zeros(1, 1, 1, 1), name="worded")
    menus = heuristic_menus(subject)
    assert min(entry.rate for entry in menus["words"]) == MIN_EMBEDDING_RATE
    assert min(entry.rate for entry in menus["out"]) < MIN_EMBEDDING_RATE


def test_quantizing_in_place_and_back() -> None:
    model = Worded(40)
    quantize_(model, {"words": "int8"})
    assert isinstance(model.words, AQEmbedding) and isinstance(model.words, nn.Embedding)
    ids = torch.arange(40)
    rows = model.words(ids)
    put_dense_layers(model)
    assert type(model.words) is nn.Embedding and torch.equal(model.words(ids), rows)
