"""Whose moments become stale, counted by hand."""

from __future__ import annotations

import pytest
import torch

from sedaq.aq.tuning.adam import Adam
from sedaq.aq.tuning.code_steps import Flips
from sedaq.aq.tuning.optimizer_reset import FullReset, OptimizerReset, SelectiveReset, stale_codewords, stale_rows
from sedaq.aq.tuning.student import Student


def flipped(layer, row: list[int], group: list[int], after: list[list[int]]) -> Flips:
    rows, groups = torch.tensor(row), torch.tensor(group)
    before = layer.codes[rows, groups]
    layer.codes[rows, groups] = torch.tensor(after, dtype=torch.int)
    return Flips(rows, groups, before, layer.codes[rows, groups])


def members(layer) -> list[list[set[tuple[int, int]]]]:
    """Of each codeword the (row, group) that use it."""
    n_entries = layer.expansion.shape[0]
    found: list[list[set[tuple[int, int]]]] = [[set() for _ in range(n_entries)] for _ in range(layer.codes.shape[2])]
    for row, groups in enumerate(layer.codes.tolist()):
        for group, codes in enumerate(groups):
            for book, code in enumerate(codes):
                found[book][code].add((row, group))
    return found


def by_hand(before, after, parts) -> torch.Tensor:
    """Share of left and come among those before and come; an entry that is a part of several codewords has the members of all."""
    share = torch.zeros(len(before), parts.shape[1], 1)
    for book in range(len(before)):
        for entry in range(parts.shape[1]):
            words = parts[:, entry].nonzero().flatten().tolist()
            moved = sum(len(before[book][k] ^ after[book][k]) for k in words)
            base = sum(len(before[book][k] | after[book][k]) for k in words)
            share[book, entry] = moved / max(base, 1)
    return share


def test_the_stale_share_of_codewords(tunable):
    for text in ("1x3g4", "2x3g4", "1x4g4m", "1x4g4h"):
        layer = tunable(text)
        before = members(layer)
        old = layer.codes[[0, 1, 5], [0, 2, 3]]
        new = (old + 1) % layer.expansion.shape[0]
        if old.shape[1] > 1:
            new[0, 1] = old[0, 1]  # of two codes one stays
        flips = flipped(layer, [0, 1, 5], [0, 2, 3], new.tolist())
        found = stale_codewords({layer: flips})
        torch.testing.assert_close(found, by_hand(before, members(layer), (layer.expansion != 0)))
        assert 0 < found.max() <= 1 and found.min() == 0


def test_a_shared_book_counts_the_members_of_all_its_layers(tunable):
    one, other = tunable("1x3g4"), tunable("1x3g4", (16, 24))
    before, still = members(one), members(other)
    flips = flipped(one, [0, 1], [0, 0], [[(one.codes[0, 0, 0].item() + 1) % 8], [(one.codes[1, 0, 0].item() + 3) % 8]])
    nothing = Flips(*(torch.empty(0, dtype=torch.long),) * 2, *(torch.empty(0, 1, dtype=torch.long),) * 2)
    both_before = [
        [{("one", *m) for m in a} | {("other", *m) for m in b} for a, b in zip(x, y, strict=True)]
        for x, y in zip(before, still, strict=True)
    ]
    after = members(one)
    both_after = [
        [{("one", *m) for m in a} | {("other", *m) for m in b} for a, b in zip(x, y, strict=True)]
        for x, y in zip(after, still, strict=True)
    ]
    torch.testing.assert_close(stale_codewords({one: flips, other: nothing}), by_hand(both_before, both_after, one.expansion != 0))


def test_the_stale_share_of_rows(tunable):
    layer = tunable("1x3g4")
    flips = flipped(layer, [2, 2, 7], [0, 5, 1], [[0], [1], [2]])
    expected = torch.zeros(32)
    expected[2], expected[7] = 2 / 6, 1 / 6
    torch.testing.assert_close(stale_rows(layer, flips), expected)


# -- what is forgotten -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(subject, encodings):
    """An optimizer with a past, and flips in one layer."""
    student = Student(subject, encodings)
    optimizer = Adam(student.parameters())
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in optimizer.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        optimizer.step(0.0)
    path = next(name for name, layer in student.layers.items() if layer.format.structure == "")
    layer = student.layers[path]
    new = ((layer.codes[[0, 1], [0, 1]] + 1) % layer.expansion.shape[0]).tolist()
    return optimizer, student, path, {path: flipped(layer, [0, 1], [0, 1], new)}


def past(optimizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in optimizer.tensors().items()}


def test_semi_forgets_by_the_stale_share_and_nothing_else(moved):
    optimizer, student, path, flips = moved
    before = past(optimizer)
    SelectiveReset().after_flips(optimizer, student, flips)
    layer = student.layers[path]
    shares = {f"{path}/stored": stale_codewords({layer: flips[path]}), f"{path}/log_scales": stale_rows(layer, flips[path])}
    assert all(0 < share.max() <= 1 for share in shares.values())
    for name, tensor in optimizer.tensors().items():
        share = shares.get(name.rpartition("/")[0], torch.zeros(()))
        torch.testing.assert_close(tensor, before[name] * (1 - share))


def test_semi_after_a_jump_forgets_directions_that_point_the_other_way(moved):
    optimizer, *_ = moved
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
    before = past(optimizer)
    SelectiveReset().after_jump(optimizer)
    for name, parameter in optimizer.parameters.items():
        against = before[f"{name}/m"] * parameter.grad < 0
        assert 0.2 < against.float().mean() < 0.8 or against.numel() < 20
        for key in "ma":
            assert torch.equal(optimizer.tensors()[f"{name}/{key}"], torch.where(against, 0.0, before[f"{name}/{key}"]))
        assert all(torch.equal(optimizer.tensors()[f"{name}/{key}"], before[f"{name}/{key}"]) for key in "vb")


def test_full_forgets_everything_where_anything_flipped(moved):
    optimizer, student, path, flips = moved
    nothing = Flips(*(torch.empty(0, dtype=torch.long),) * 2, *(torch.empty(0, 1, dtype=torch.long),) * 2)
    before = past(optimizer)
    FullReset().after_flips(optimizer, student, {path: nothing})
    OptimizerReset().after_flips(optimizer, student, flips)
    OptimizerReset().after_jump(optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.tensors().items())
    FullReset().after_flips(optimizer, student, flips)
    assert all((tensor == 0).all() for tensor in optimizer.tensors().values())
