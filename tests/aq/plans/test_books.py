"""Codebooks that the layers of one role share: fitted on all, kept once, counted once."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from torch import nn

from sedaq.aq.encoder.encoder import encode, fit_book
from sedaq.aq.encoding import Encoding
from sedaq.aq.export.apply import apply, assemble
from sedaq.aq.export.state import QuantizedState
from sedaq.aq.formats import BOOK_TENSORS, Format
from sedaq.aq.plans import store as store_module
from sedaq.aq.plans.plan import Plan, book_holders, tensor_specs, weight_bits
from sedaq.aq.plans.store import EncodingStore, book_name
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.tune import tune
from sedaq.aq.tuning.tuned import Tuned
from sedaq.errors import InputError
from sedaq.models.subject import Subject

from ..conftest import CALIBRATION, SHARED_FORMATS

QUERY, KEY, VALUE = SHARED_FORMATS.values()


def attention(part: str) -> list[str]:
    return [f"transformer_blocks.{i}.attn1.{part}" for i in range(3)]


def book_of(encoding: Encoding) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in encoding.tensors.items() if name in BOOK_TENSORS}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]) for name, tensor in a.items())


# -- fitting and storing -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [QUERY, KEY])
def test_a_book_of_all_is_better_than_the_book_of_any_one(text, books):
    """Sums of relative errors; a book of one is averaged over whose it is."""
    format = Format.parse(text)
    members = books.sharers(format)

    def total(book: dict[str, torch.Tensor]) -> float:
        return sum(encode(books.subject.weight(m.name), format, books.hessian(m), book=book).error for m in members)

    alone = [total(fit_book([books.objective(m)], format)) for m in members]
    assert len(members) == 3 and total(books.book(format)) < 0.9 * sum(alone) / len(alone)


def test_all_that_share_hold_the_stored_book(books):
    format = Format.parse(QUERY)
    book = books.book(format)
    assert book.keys() == set(BOOK_TENSORS) and book["codebooks"].dtype == torch.int8
    for member in books.sharers(format):
        assert same(book_of(books.get(member, format)), book)


def test_a_book_is_made_once_and_for_its_format_and_effort_alone(books, monkeypatch):
    made = []
    original = store_module.fit_book
    monkeypatch.setattr(
        store_module, "fit_book", lambda members, format, **how: made.append(str(format)) or original(members, format, **how)
    )
    format = Format.parse("1x3g4@attention-query")
    wanted = [(member, format) for member in books.sharers(format)]
    books.fill([*wanted, (wanted[0][0], Format.parse("1x3g4"))])
    first = books.book(format)
    books.fill(wanted)
    assert same(EncodingStore(books.subject, books.folder, calibration=CALIBRATION).book(format), first) and made == [str(format)]
    other = EncodingStore(books.subject, books.folder, calibration=CALIBRATION, effort="draft")
    assert not same(other.book(format), first) and len(made) == 2
    books.book(Format.parse("1x3g3@attention-query"))
    assert made[2:] == ["1x3g3@attention-query"]


def test_layers_filled_at_once_are_those_filled_one_by_one(blocks, tmp_path):
    wanted = [(layer, Format.parse(text)) for layer in blocks.layers if layer.role.startswith("attention") for text in (QUERY, "1x4g4")]
    threads = torch.get_num_threads()
    stores = [EncodingStore(blocks, tmp_path / name, calibration=CALIBRATION) for name in ("one", "two", "each")]
    try:
        for n, store in zip((1, 2), stores, strict=False):
            torch.set_num_threads(n)
            store.fill(wanted)
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    for layer, format in wanted:
        first, *others = (store.get(layer, format) for store in stores)
        assert all(same(first.tensors, other.tensors) and first.error == other.error for other in others)


def test_an_encoding_depends_on_all_that_share_its_book(blocks, books):
    first, second, _ = books.sharers(Format.parse(QUERY))
    before = [books.task(first, Format.parse(text)).path for text in (QUERY, "1x6g4q")]
    with blocks.weights_replaced({second.name: 2 * blocks.weight(second.name)}):
        changed = EncodingStore(blocks, books.folder, calibration=CALIBRATION)
        changed.calibration_fingerprint = books.calibration_fingerprint
        after = [changed.task(first, Format.parse(text)).path for text in (QUERY, "1x6g4q")]
    assert before[0] != after[0] and before[1] == after[1]


def test_only_layers_that_can_have_the_format_share(tmp_path):
    denoiser = nn.Sequential(nn.Linear(4, 4))
    subject = Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="m")
    assert book_name(subject.layers[0]) == "0"
    store = EncodingStore(subject, tmp_path, calibration=CALIBRATION)
    assert store.sharers(Format.parse("1x4g4@0")) == list(subject.layers)
    with pytest.raises(InputError, match="1x4g9t@0: no layer of the role '0' can have it"):
        store.sharers(Format.parse("1x4g9t@0"))


def test_an_unknown_role_is_refused_with_the_roles_there_are(blocks, books, tmp_path):
    format = Format.parse("1x4g4@attention-quarry")
    known = "attention-key, attention-output, attention-query, attention-value, feed-forward-in"
    for ask in (books.book, books.sharers, lambda f: books.get(blocks.layers[1], f), lambda f: books.fill([(blocks.layers[1], f)])):
        with pytest.raises(InputError, match=f"format 1x4g4@attention-quarry: there is no role 'attention-quarry' .* {known}") as caught:
            ask(format)
        assert "\n" not in str(caught.value)
    plan = Plan.of(blocks, {layer.name: format for layer in blocks.layers}, encoding=books.identity)
    with pytest.raises(InputError, match="there is no role 'attention-quarry'"):
        apply(blocks, plan, books, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- plans and files -----------------------------------------------------------------------------------------------------------------------


def test_the_first_by_name_of_those_with_an_equal_format_holds_the_book(shared_plan):
    holders = book_holders(shared_plan.formats)
    assert set(holders) == {*attention("to_q"), *attention("to_k"), *attention("to_v")[1:]}
    assert [holders[name] for name in attention("to_q")] == attention("to_q")[:1] * 3
    assert [holders[name] for name in attention("to_v")[1:]] == attention("to_v")[1:2] * 2
    formats = {
        "b": Format.parse(QUERY),
        "a.10": Format.parse(QUERY),
        "a.2": Format.parse("1x6g4@attention-query"),
        "c": Format.parse("int8"),
    }
    assert book_holders(formats) == {"b": "a.10", "a.10": "a.10", "a.2": "a.2"}


def test_a_plan_counts_each_book_once(blocks, shared_plan):
    specs = tensor_specs(blocks, shared_plan.formats)
    stored = {name for name in specs if name.rpartition(".")[2] in BOOK_TENSORS}
    assert stored == {
        "transformer_blocks.0.attn1.to_q.codebooks",
        "transformer_blocks.0.attn1.to_q.codebook_scales",
        "transformer_blocks.0.attn1.to_k.codebooks",
        "transformer_blocks.0.attn1.to_v.codebooks",
        "transformer_blocks.1.attn1.to_v.codebooks",
    }
    own = {name: replace(format, book="") for name, format in shared_plan.formats.items()}
    saved = 2 * (64 * 4 + 2) + 2 * (2 * 8 * 4 * 2) + 32 * 4 * 2  # two layers' queries, two layers' keys, one layer's values
    n_weights = sum(layer.n_weights for layer in blocks.layers)
    assert weight_bits(blocks, own) - shared_plan.bits_per_weight == pytest.approx(8 * saved / n_weights)


@pytest.mark.parametrize("differing", BOOK_TENSORS)
def test_layers_whose_codebooks_differ_cannot_be_stored_as_one(differing, blocks, shared_plan, books):
    encodings = dict(assemble(blocks, shared_plan, books))
    name = attention("to_q")[2]
    tensors = {**encodings[name].tensors, differing: encodings[name].tensors[differing] * -1}
    encodings[name] = dataclasses.replace(encodings[name], tensors=tensors)
    with pytest.raises(InputError, match=f"layer {name}: its {differing} are not those of {attention('to_q')[0]}, with which it shares"):
        QuantizedState(blocks, Tuned(encodings, {}))


# -- tuning --------------------------------------------------------------------------------------------------------------------------------


def test_tuning_changes_shared_codebooks_and_keeps_them_equal(blocks, shared_plan, books):
    encodings = dict(assemble(blocks, shared_plan, books))
    settings = TuneConfig(steps=30, batch_size=16, n_images=64, sampling_steps=4, check_every=10)
    tuned = tune(blocks, encodings, settings)
    assert tuned.losses[-1][1] < tuned.losses[0][1]
    for part, first in (("to_q", 0), ("to_k", 0), ("to_v", 1)):
        names = attention(part)[first:]
        assert all(same(book_of(tuned.encodings[name]), book_of(tuned.encodings[names[0]])) for name in names)
        assert not same(book_of(tuned.encodings[names[0]]), book_of(encodings[names[0]]))
    own, shared = (book_of(tuned.encodings[name]) for name in attention("to_v")[:2])
    assert not same(own, shared), "the same format with codebooks of its own is apart"
    state = QuantizedState(blocks, tuned)
    assert state.keys() == tensor_specs(blocks, shared_plan.formats).keys()
