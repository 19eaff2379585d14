"""Measured menus: within the rates, the best of what was tried, and measured once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sedaq.aq.encoder.encoder import encode, encode_objective
from sedaq.aq.encoder.objective import Objective
from sedaq.aq.formats import AS_IS, Format
from sedaq.aq.plans import menu_choice
from sedaq.aq.plans import store as store_module
from sedaq.aq.plans.menu import Entry, candidates, cheapest, slowness
from sedaq.aq.plans.menu_choice import AS_GOOD, MIN_GAIN, N_OWN, as_good, best_format, draft_error, drawn_rows, measured_menus
from sedaq.aq.plans.store import EncodingStore, book_name
from sedaq.errors import InputError
from sedaq.models.subject import Subject
from sedaq.storage import read_json

INT8 = Format.parse("int8")

CALIBRATION = {"seed": 0, "n_images": 4, "steps": 1}
RATES = (1.5, 2.0, 3.0)


class Denoiser(nn.Module):
    """A convolution, four linear layers of one role of which one is smaller, one of another role, and one too small for any rate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 24, 3, padding=1)
        self.blocks = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(24, n)}) for n in (24, 24, 8, 24)])
        self.proj_out = nn.Linear(24, 40)
        self.gain = nn.Linear(3, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_in(x).movedim(1, -1)
        for block in self.blocks:
            z = block["to_q"](y).tanh()
            y = y + z.repeat_interleave(24 // z.shape[-1], -1)
        return self.proj_out(y).movedim(-1, 1)[:, :4] * self.gain(x.new_ones(3))[:4].reshape(1, 4, 1, 1)


@pytest.fixture(scope="module")
def tiny() -> Subject:
    torch.manual_seed(0)
    denoiser = Denoiser()

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.randn(n_images, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
        return denoiser(x.cumsum(1)).sigmoid()

    return Subject(denoiser, sample=sample, name="tiny-roles", stored_dtypes=dict.fromkeys(denoiser.state_dict(), torch.float16))


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    """Where the menus of RATES were measured."""
    folder = tmp_path_factory.mktemp("measured")
    measured_menus(EncodingStore(tiny, folder, calibration=CALIBRATION), RATES)
    return folder


@pytest.fixture
def measured(tiny, folder) -> EncodingStore:
    return EncodingStore(tiny, folder, calibration=CALIBRATION)


@pytest.fixture
def nothing_encoded(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("encoded again")

    for module, name in ((menu_choice, "encode_objective"), (store_module, "encode_objective"), (store_module, "fit_book")):
        monkeypatch.setattr(module, name, refuse)


def contents(folder: Path) -> dict[str, Mapping]:
    """What was measured, by the layer or the book that it is of."""
    return {path.name.rsplit(".", 2)[0]: read_json(path, "menu") for path in (folder / "menus").iterdir()}


def total_bits(store: EncodingStore, entries: Sequence[tuple[str, Entry]]) -> float:
    """Of some layers together, each book once."""
    books = {entry.book: entry.book_bytes for _, entry in entries}
    size = sum(entry.size_bytes for _, entry in entries) + sum(books.values())
    return 8 * size / sum(store.subject.layer(name).n_weights for name, _ in entries)


def test_entries_are_within_their_rate_alone_or_with_all_that_share(measured, nothing_encoded):
    menus = measured_menus(measured, RATES)
    assert list(menus) == [layer.name for layer in measured.subject.layers]
    by_book: dict[str, list[tuple[str, Entry]]] = {}
    for name, menu in menus.items():
        assert [entry.format for entry in menu[-2:]] == [INT8, AS_IS]
        assert [entry.rate for entry in menu] == sorted({entry.rate for entry in menu}) and menu[-2].rate == 8.0
        for entry in menu[:-2]:
            if entry.book:
                by_book.setdefault(entry.book, []).append((name, entry))
            elif candidates(entry.rate, (measured.subject.layer(name).shape,), 1):
                assert total_bits(measured, [(name, entry)]) <= entry.rate
    assert by_book, "nothing is shared"
    for entries in by_book.values():
        assert {name for name, _ in entries} == {layer.name for layer in measured.sharers(entries[0][1].format)}
        assert total_bits(measured, entries) <= entries[0][1].rate


def test_a_layer_that_no_format_fits_has_its_cheapest_once(measured, nothing_encoded):
    menu = measured_menus(measured, RATES)["gain"]
    shape = measured.subject.layer("gain").shape
    assert not candidates(RATES[-1], (shape,), N_OWN)
    assert [(entry.rate, entry.format) for entry in menu[:-2]] == [(RATES[0], cheapest(shape))]


def test_the_choice_is_the_candidate_of_least_draft_error(measured):
    for layer in measured.subject.layers:
        content = contents(measured.folder)[layer.name]
        tried = {Format.parse(text): error for text, error in content["tried"].items()}
        known: set[Format] = set()
        for rate in RATES:
            found = candidates(rate, (layer.shape,), N_OWN)
            known |= set(found)
            assert known <= tried.keys()
            choice = content["chosen"][repr(rate)]
            assert choice["error"] == tried[Format.parse(choice["format"])] == min((tried[f] for f in known), default=choice["error"])
    weight, hessian = measured.subject.weight("proj_out"), measured.hessian(measured.subject.layer("proj_out"))
    for text, error in contents(measured.folder)["proj_out"]["tried"].items():
        assert encode(weight, Format.parse(text), hessian, effort="draft").error == error


def test_errors_of_own_formats_never_rise_with_the_rate(measured):
    for layer in measured.subject.layers:
        errors = [choice["error"] for choice in contents(measured.folder)[layer.name]["chosen"].values()]
        assert len(errors) == len(RATES) and errors == sorted(errors, reverse=True)


def test_a_convolution_is_tried_with_groups_over_channels_and_over_taps(measured):
    tried = [Format.parse(text) for text in contents(measured.folder)["conv_in"]["tried"]]
    assert {format.grouping for format in tried} == {"c", "t"}
    assert all(format.group_size == 9 for format in tried if format.grouping == "t")


def test_books_are_shared_where_that_is_better_on_average(tiny, measured):
    """Mean logarithm of how much less the errors are, measured anew."""
    members = [layer for layer in measured.subject.layers if layer.role == "attention query"]
    name, own = book_name(members[0]), {layer.name: contents(measured.folder)[layer.name]["chosen"] for layer in members}
    menus = measured_menus(measured, RATES)
    tried = 0
    for rate in RATES:
        content = contents(measured.folder)[f"{name}.{rate:g}"]
        for layer in members:
            expected = content["chosen"] or own[layer.name][repr(rate)]["format"]
            assert Format.parse(expected) in [entry.format for entry in menus[layer.name]]
        if content["gain"] is None:
            assert content["chosen"] is None
            continue
        tried += 1
        assert content["chosen"] == (content["tried"] if content["gain"] > MIN_GAIN else None)
        format = Format.parse(content["tried"])
        assert format.book == name and replace(format, book="") in candidates(rate, tuple(layer.shape for layer in members), 2)
        book = measured.fit_book(format, effort="draft")
        errors = [encode(tiny.weight(m.name), format, measured.hessian(m), effort="draft", book=book).error for m in members]
        before = [own[layer.name][repr(rate)]["error"] for layer in members]
        assert content["gain"] == pytest.approx(sum(math.log(a / b) for a, b in zip(before, errors, strict=True)) / len(members))
    assert tried


def test_only_layers_of_one_role_share(measured):
    books = {f"attention-query.{rate:g}" for rate in RATES}
    assert set(contents(measured.folder)) == {*(layer.name for layer in measured.subject.layers), *books}


def test_menus_come_back_equal_without_encoding(tiny, measured, nothing_encoded):
    first = measured_menus(measured, RATES)
    again = measured_menus(EncodingStore(tiny, measured.folder, calibration=CALIBRATION), RATES[::-1])
    assert again == first


@pytest.mark.parametrize("change", ["rates", "calibration", "seed", "weight"])
def test_what_a_menu_depends_on_gives_another_file(change, tiny, measured, nothing_encoded):
    before = set((measured.folder / "menus").iterdir())
    settings = {**CALIBRATION, "n_images": 5} if change == "calibration" else CALIBRATION
    other = EncodingStore(tiny, measured.folder, calibration=settings, seed=int(change == "seed"))
    weights = {"proj_out": torch.ones(40, 24)} if change == "weight" else {}
    with tiny.weights_replaced(weights), pytest.raises(AssertionError, match="encoded again"):
        measured_menus(other, RATES[:2] if change == "rates" else RATES)
    assert set((measured.folder / "menus").iterdir()) == before


def test_more_rates_leave_what_was_measured(tiny, measured, tmp_path):
    """Another list of rates is measured on its own; its first rate's own formats agree, for they see the same candidates."""
    other = EncodingStore(tiny, tmp_path, calibration=CALIBRATION)
    measured_menus(other, RATES[:1])
    for layer in tiny.layers:
        found, known = (contents(folder)[layer.name]["chosen"][repr(RATES[0])] for folder in (tmp_path, measured.folder))
        assert found == known


def test_threads_do_not_change_menus(tiny, measured, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        other = measured_menus(EncodingStore(tiny, tmp_path, calibration=CALIBRATION), RATES)
        assert torch.get_num_threads() == 3 - min(threads, 2)
    finally:
        torch.set_num_threads(threads)
    assert other == measured_menus(measured, RATES)


def test_large_layers_are_measured_alone_with_the_same_result(tiny, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "ALONE_ABOVE", 300)
    assert measured_menus(EncodingStore(tiny, tmp_path, calibration=CALIBRATION), RATES) == measured_menus(measured, RATES)


# -- one weight ----------------------------------------------------------------------------------------------------------------------------


def test_the_best_format_of_a_weight_is_that_of_its_menu(measured):
    layer = measured.subject.layer("proj_out")
    objective = measured.objective(layer)
    found = best_format(objective, 2.0)
    errors = {format: encode_objective(objective, format, effort="draft").error for format in candidates(2.0, (layer.shape,), N_OWN)}
    assert found == min(errors, key=errors.__getitem__) and found.bits_per_weight(layer.shape) <= 2.0
    assert best_format(objective, 2.0, limit=1) == candidates(2.0, (layer.shape,), 1)[0]
    with pytest.raises(InputError, match=r"no format of a weight of shape \(40, 24\) is within 0\.3 bits; allow more"):
        best_format(objective, 0.3)


def test_of_many_rows_some_are_tried(monkeypatch):
    """Drawn by the seed alone; few rows and grouped convolutions, whose rows have a Hessian each, are tried whole."""
    rng = torch.Generator().manual_seed(0)
    weight, format = torch.randn(60, 12, generator=rng), Format.parse("1x4g4")
    objective = Objective.of(weight)
    whole = encode(weight, format, effort="draft").error
    assert draft_error(drawn_rows(objective, 0), format) == whole
    monkeypatch.setattr(menu_choice, "N_ROWS", 40)
    first, again, other = (draft_error(drawn_rows(objective, seed), format) for seed in (1, 1, 2))
    assert first == again and len({first, other, whole}) == 3
    assert first == pytest.approx(whole, rel=0.3)
    grouped = Objective.of(weight, groups=3)
    assert drawn_rows(grouped, 0) is grouped


def test_the_order_of_speeds_is_fixed():
    slow_to_fast = ["1x9g4", "4x8g8", "2x8g8", "1x8g4h", "1x4g2", "4x4g8", "2x8g8h", "1x8g8h"]
    kinds = [slowness(Format.parse(text)) for text in slow_to_fast]
    assert [kind for kind, _ in kinds] == [2, 1, 1, 0, 0, 0, 0, 0]
    assert kinds[1] > kinds[2] and kinds[4] == kinds[5] > kinds[3] == kinds[6] > kinds[7]


def test_a_faster_format_is_taken_where_it_is_as_good():
    free, fast, faster, short = (Format.parse(text) for text in ("2x8g8", "2x8g8h", "1x8g8h", "1x4g4"))
    errors = {free: 0.1, fast: 0.1 * (1 + AS_GOOD), faster: 0.1 * (1.001 + AS_GOOD), short: 0.2}
    assert as_good(list(errors), errors) == fast
    assert as_good([free, faster, short], errors) == free
    assert as_good([fast, faster], errors) == faster
    assert as_good([short], errors) == short
    even = {fast: 0.1, Format.parse("2x8g8hq"): 0.0999}
    assert as_good(list(even), even) == Format.parse("2x8g8hq")
