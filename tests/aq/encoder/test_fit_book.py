"""Codebooks fitted to several layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from sedaq.aq.encoder.encoder import encode, fit_book
from sedaq.aq.encoder.objective import Objective
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.errors import InputError
from sedaq.models.hessian import Hessian

FORMAT = Format.parse("1x4g4@role")


@dataclass(frozen=True)
class Member:
    """A layer that shares codebooks."""

    weight: torch.Tensor
    hessian: Hessian
    groups: int = 1


def book_of(members: Sequence[Member], format: Format, seed: int = 0) -> dict[str, torch.Tensor]:
    return fit_book([Objective.of(m.weight, m.hessian, m.groups) for m in members], format, seed=seed)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def member(n_out: int, n_in: int, seed: int = 0, spread: float = 0.0) -> Member:
    """`spread` makes some weights much larger than others."""
    x = gaussian(4 * n_in, n_in, seed=seed + 1) @ (torch.eye(n_in) + 0.3 * gaussian(n_in, n_in, seed=seed + 2))
    weight = gaussian(n_out, n_in, seed=seed) * (spread * gaussian(n_out, n_in, seed=seed + 3)).exp()
    return Member(weight, Hessian.of(x.T @ x / len(x)))


def encoded(member: Member, book: dict[str, torch.Tensor], format: Format = FORMAT) -> Encoding:
    return encode(member.weight, format, member.hessian, groups=member.groups, book=book)


@pytest.mark.parametrize("text", ["1x4g4@role", "2x3g4m@role", "1x4g4hq@role"])
def test_the_book_of_one_layer_is_as_good_as_its_own_codebooks(text):
    format, layer = Format.parse(text), member(48, 32)
    shared = encoded(layer, book_of([layer], format), format)
    own = encode(layer.weight, replace(format, book=""), layer.hessian)
    assert shared.error == pytest.approx(own.error, rel=0.15)
    assert shared.format == format and shared.dequantize().shape == layer.weight.shape


@pytest.mark.parametrize("text", ["1x4g4@role", "2x3g4mq@role"])
def test_encodings_hold_the_book_that_they_were_given(text):
    format, layers = Format.parse(text), [member(30, 12), member(200, 9, seed=5)]
    book = book_of(layers, format)
    for layer in layers:
        tensors = encoded(layer, book, format).tensors
        assert all(torch.equal(tensors[name], tensor) for name, tensor in book.items())


def test_a_book_serves_all_that_share_it():
    """Each better than a book of the other alone does, and worse than its own."""
    first, second = member(60, 16), member(60, 24, seed=5, spread=1.0)
    shared, of_first, of_second = (book_of(layers, FORMAT) for layers in ([first, second], [first], [second]))
    for layer, own, foreign in ((first, of_first, of_second), (second, of_second, of_first)):
        errors = [encoded(layer, book).error for book in (own, shared, foreign)]
        assert errors[0] < errors[1] < 0.85 * errors[2], errors


@pytest.mark.parametrize("size", [2.0**-8, 2.0**6])
def test_layers_count_by_their_relative_errors(size):
    first, second = member(40, 16), member(40, 12, seed=5)
    book = book_of([first, second], FORMAT)["codebooks"]
    larger = Member(size * second.weight, second.hessian)
    other_inputs = Member(second.weight, Hessian(tuple(size * block for block in second.hessian.blocks)))
    for changed in (larger, other_inputs):
        assert torch.equal(book_of([first, changed], FORMAT)["codebooks"], book)


def test_books_are_equal_to_the_bit_at_one_and_two_threads():
    layers = [member(400, 16), member(60, 12, seed=5), member(180, 20, seed=9)]
    threads, made = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            made.append(book_of(layers, FORMAT, seed=2)["codebooks"])
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made) and not torch.equal(made[0], book_of(layers, FORMAT, seed=3)["codebooks"])


def test_layers_of_zeros_do_not_count():
    layer, nothing = member(40, 16), Member(torch.zeros(6, 8), Hessian.identity(8))
    book = book_of([layer], FORMAT)
    assert torch.equal(book_of([nothing, layer], FORMAT)["codebooks"], book["codebooks"])
    assert encoded(nothing, book).error == 0 and torch.equal(encoded(nothing, book).dequantize(), nothing.weight)
    with pytest.raises(InputError, match="'role' hold nothing but zeros"):
        book_of([nothing], FORMAT)


@pytest.mark.parametrize("one_for_all", [False, True])
def test_grouped_convolutions_share_books_too(one_for_all):
    """Their conv groups may have a Hessian each or one together, as in `encode`."""
    hessian = Hessian.identity(18, 1 if one_for_all else 3)
    layers = [Member(gaussian(12, 2, 3, 3), hessian, groups=3), member(20, 12)]
    book = book_of(layers, FORMAT)
    assert all(encoded(layer, book).error < 0.5 for layer in layers)


def test_layers_and_hessians_of_double_precision():
    layer = member(20, 12)
    double = Member(layer.weight.double(), Hessian(tuple(block.double() for block in layer.hessian.blocks)))
    assert torch.equal(book_of([double], FORMAT)["codebooks"], book_of([layer], FORMAT)["codebooks"])
