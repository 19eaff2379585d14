"""Plans and menus: exact bytes, what fits, and files that are refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sedaq.aq.activations.quantizer import Activation
from sedaq.aq.formats import AS_IS, Format
from sedaq.aq.plans.menu import RATES, candidates, cheapest, entry, heuristic_menus, layer_menu, predicted_bits
from sedaq.aq.plans.plan import SAFETENSORS_METADATA, Plan, file_bytes, tensor_specs, weight_bits
from sedaq.errors import InputError
from sedaq.models.subject import Subject

INT8 = Format.parse("int8")

DTYPES = [
    torch.uint8,
    torch.int8,
    torch.bool,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
specs = st.dictionaries(
    names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 30), max_size=3).map(tuple)), min_size=1, max_size=12
)


@given(specs=specs)
@settings(max_examples=150, deadline=None)
def test_file_bytes_are_those_of_the_real_file(specs):
    data = safetensors.torch.save({name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in specs.items()}, SAFETENSORS_METADATA)
    assert file_bytes(specs) == len(data)


def zeros_file(subject: Subject, formats: dict[str, Format]) -> int:
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensor_specs(subject, formats).items()}
    return len(safetensors.torch.save(tensors, SAFETENSORS_METADATA))


# -- menus -------------------------------------------------------------------------------------------------------------------------------


SHAPES = [(128, 128), (1152, 1152), (512, 128), (128, 128, 3, 3), (24, 48, 1, 1), (6, 1152)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_candidates_are_within_their_rate_and_the_most_promising_first(rate, shape):
    found = candidates(rate, (shape,), 6)
    assert found and len(set(found)) == len(found) <= 6
    for format in found:
        assert format.fits(shape) and format.bits_per_weight(shape) <= rate and not format.book
    if min(shape[:2]) >= 128:  # where overhead is small, the rate is put to use
        assert found[0].bits_per_weight(shape) > 0.75 * rate
    promised = [predicted_bits(format, math.prod(shape)) for format in found]
    assert promised == sorted(promised, reverse=True)
    if len(shape) == 2:  # convolutions keep a place for each grouping
        assert candidates(rate, (shape,), 3) == found[:3]


@pytest.mark.parametrize("rate", [2.0, 4.0])
def test_convolutions_have_candidates_of_both_groupings(rate):
    assert {format.grouping for format in candidates(rate, ((128, 128, 3, 3),), 2)} == {"c", "t"}
    assert {format.grouping for format in candidates(rate, ((128, 128, 1, 1),), 4)} == {""}


@given(
    shapes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=5),
    rate=st.floats(1.2, 5),
    limit=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_layers_that_share_are_within_the_rate_together(shapes, rate, limit):
    """The book counts once, codes and scales in every layer."""
    for format in candidates(rate, tuple(shapes), limit):
        book = sum(dtype.itemsize * math.prod(size) for name, (dtype, size) in format.tensor_specs(shapes[0]).items() if "codebook" in name)
        total = book + sum(format.size_bytes(shape) - book for shape in shapes)
        assert 8 * total <= rate * sum(map(math.prod, shapes))


def test_sharing_affords_more_than_each_layer_alone():
    shape = (48, 48)
    alone, together = candidates(2.0, (shape,), 1)[0], candidates(2.0, (shape,) * 12, 1)[0]
    assert predicted_bits(together, 12 * math.prod(shape)) > predicted_bits(alone, math.prod(shape)) + 0.05


@pytest.mark.parametrize("shape", [(128, 1), (3, 5), (1, 1), (7, 2, 3, 3)])
def test_the_cheapest_format_is_below_all_others_on_the_list(shape):
    chosen = cheapest(shape)
    alternatives = [Format.parse(f"1x{b}g{g}{s}{q}") for b in range(3, 9) for g in (4, 8, 16) for s in ("", "m") for q in ("", "q")]
    assert chosen.fits(shape) and chosen.size_bytes(shape) == min(format.size_bytes(shape) for format in alternatives)


def test_a_layer_that_no_format_fits_takes_its_cheapest():
    denoiser = nn.Sequential(nn.Linear(1, 128))
    subject = Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="m", stored_dtypes={"0.weight": torch.float32})
    assert not any(candidates(rate, ((128, 1),), 4) for rate in RATES)
    first, *others = heuristic_menus(subject)["0"]
    assert (first.format, first.rate) == (cheapest((128, 1)), RATES[0])
    assert [str(entry.format) for entry in others] == ["int8", "asis"], "one format, once"


@pytest.mark.parametrize("rates", [RATES, (2.0,), (4.0, 1.5)])
def test_menus_ascend_from_the_rates_over_int8_to_as_is(subject, rates):
    menus = heuristic_menus(subject, rates)
    assert list(menus) == [layer.name for layer in subject.layers]
    for name, entries in menus.items():
        layer = subject.layer(name)
        sizes = [entry.size_bytes for entry in entries]
        assert sizes == sorted(set(sizes)), "equal sizes would be two names for one choice"
        assert [entry.rate for entry in entries] == sorted(entry.rate for entry in entries)
        assert {entry.rate for entry in entries} <= {*rates, 8.0, 16.0}
        assert (entries[-2].format, entries[-2].rate) == (INT8, 8.0)
        assert entries[-1].format == AS_IS and entries[-1].size_bytes == 2 * layer.n_weights
        assert len({entry.format for entry in entries}) == len(entries)
        for choice in entries:
            assert choice.size_bytes == choice.format.size_bytes(layer.shape) and choice.file_bytes > choice.size_bytes
            assert (choice.book, choice.book_bytes, choice.book_file_bytes) == ("", 0, 0)


@pytest.mark.parametrize("text", ["1x4g4@attention-query", "2x5g4mq@attention-query"])
def test_an_entry_leaves_a_shared_book_out_and_says_what_it_weighs(text, subject):
    format, layer = Format.parse(text), next(layer for layer in subject.layers if layer.role == "attention query")
    shared, own = entry(subject, layer, format), entry(subject, layer, replace(format, book=""))
    assert (shared.book, own.book) == (text, "")
    assert shared.size_bytes + shared.book_bytes == own.size_bytes and own.book_bytes == 0
    assert shared.book_bytes == sum(
        dtype.itemsize * math.prod(size) for name, (dtype, size) in format.tensor_specs(layer.shape).items() if "codebook" in name
    )
    assert shared.rate == own.rate == 8 * own.size_bytes / layer.n_weights, "without a rate: the bits that it takes"
    assert shared.file_bytes + shared.book_file_bytes >= own.file_bytes > shared.file_bytes


def test_as_is_counts_in_the_stored_dtype():
    denoiser = nn.Sequential(nn.Linear(64, 64))
    layer_of = {}
    for dtype in (torch.float32, torch.float16):
        subject = Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="m", stored_dtypes={"0.weight": dtype})
        layer_of[dtype] = layer_menu(subject, subject.layers[0], {})[-1]
    assert layer_of[torch.float32].size_bytes == 2 * layer_of[torch.float16].size_bytes == 4 * 64 * 64
    assert (layer_of[torch.float32].rate, layer_of[torch.float16].rate) == (32.0, 16.0)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_entries_and_the_rest_bound_the_real_file(data):
    """A budget kept in menu entries is kept on disk."""
    widths = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))
    denoiser = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)), nn.LayerNorm(widths[-1]))
    subject = Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="m", stored_dtypes={"0.weight": torch.float16})
    menus, formats, total = heuristic_menus(subject), {}, 0
    for layer in subject.layers:
        choice = data.draw(
            st.sampled_from([*menus[layer.name], entry(subject, layer, INT8), entry(subject, layer, Format.parse("2x4g4q"))])
        )
        formats[layer.name] = choice.format
        total += choice.file_bytes
    rest = {name: spec for name, spec in subject.tensor_specs.items() if name not in {f"{layer.name}.weight" for layer in subject.layers}}
    real = zeros_file(subject, formats)
    assert file_bytes(tensor_specs(subject, formats)) == real
    # What is not a layer's weight: a file of its own, its offsets counted with as many digits as the whole file may have.
    rest_bytes = file_bytes(rest) + 2 * len(str(real)) * len(rest) + 8
    assert real <= total + rest_bytes


# -- plans -------------------------------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_formats(subject, mixed_plan):
    assert mixed_plan.size_bytes == zeros_file(subject, mixed_plan.formats)
    weights = sum(mixed_plan.formats[layer.name].size_bytes(layer.shape) for layer in subject.layers)
    assert mixed_plan.bits_per_weight == pytest.approx(8 * weights / sum(math.prod(layer.shape) for layer in subject.layers))
    assert weight_bits(subject, {layer.name: AS_IS for layer in subject.layers}) == 16.0
    assert list(mixed_plan.formats) == [layer.name for layer in subject.layers]


def test_save_and_load(subject, mixed_plan, tmp_path):
    plan = dataclasses.replace(
        mixed_plan,
        budget={"bits": 3.0},
        activations={subject.layers[0].name: Activation(8, "token-affine")},
        predicted={"metric": "fid", "value": 1.5, "std": 0.1},
        measured=None,
        provenance={"seed": 0},
    )
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan and loaded.hash == plan.hash
    loaded.validate(subject)
    content = json.loads((tmp_path / "plan.json").read_text())
    wanted = {"schema", "subject", "budget", "layers", "encoding", "size_bytes", "bits_per_weight", "predicted", "measured", "provenance"}
    assert wanted <= content.keys()
    assert content["layers"][subject.layers[0].name] == {
        "format": str(plan.formats[subject.layers[0].name]),
        "activation_bits": 8,
        "activation_scheme": "token-affine",
    }
    plan.save(str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_the_hash_tells_plans_apart(subject, mixed_plan):
    first = subject.layers[0].name
    others = [
        dataclasses.replace(mixed_plan, formats={**mixed_plan.formats, first: Format.parse("1x6g4")}),
        dataclasses.replace(mixed_plan, activations={first: Activation(8)}),
        dataclasses.replace(mixed_plan, encoding={"effort": "full"}),
        dataclasses.replace(mixed_plan, subject_fingerprint="0" * 16),
    ]
    assert len({plan.hash for plan in (mixed_plan, *others)}) == 5
    assert dataclasses.replace(mixed_plan, measured={"fid": 2.0}, budget={"bits": 1.0}).hash == mixed_plan.hash


def test_a_plan_of_another_model_is_refused(subject, mixed_plan):
    denoiser = nn.Sequential(nn.Linear(4, 4))
    other = Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="other")
    with pytest.raises(InputError, match=r"made for tiny-dit.*not for other.*search again"):
        mixed_plan.validate(other)


def test_changed_weights_are_another_model(dit_folder, mixed_plan):
    from sedaq.models.loading import load

    changed = load(dit_folder)
    with torch.no_grad():
        changed.denoiser.get_submodule(changed.layers[0].name).weight.view(-1)[0] += 1
    with pytest.raises(InputError, match="search again"):
        mixed_plan.validate(changed)


def test_missing_and_unknown_layers_are_named(subject, mixed_plan):
    name = subject.layers[3].name
    fewer = {layer: format for layer, format in mixed_plan.formats.items() if layer != name}
    more = {**mixed_plan.formats, "blocks.9.none": INT8}
    for formats, message in ((fewer, f"leaves out layer '{name}'"), (more, "names layer 'blocks.9.none'")):
        with pytest.raises(InputError, match=message):
            Plan.of(subject, formats)
        with pytest.raises(InputError, match=message):
            dataclasses.replace(mixed_plan, formats=formats).validate(subject)


def test_a_format_that_a_layer_cannot_have_is_refused_with_its_name(subject, mixed_plan):
    linear = next(layer.name for layer in subject.layers if layer.kind == "linear")
    with pytest.raises(InputError, match=f"layer {linear}: format 1x4g9t"):
        Plan.of(subject, {**mixed_plan.formats, linear: Format.parse("1x4g9t")})


def test_a_wrong_size_is_refused(subject, mixed_plan):
    with pytest.raises(InputError, match=r"states size_bytes .*search again"):
        dataclasses.replace(mixed_plan, size_bytes=mixed_plan.size_bytes + 1).validate(subject)


def test_hand_edited_files_are_refused(mixed_plan, tmp_path):
    path = tmp_path / "plan.json"
    mixed_plan.save(path)
    text = path.read_text()
    edited = json.loads(text)
    edited["layers"][next(iter(edited["layers"]))]["format"] = "1x8g4"
    for damaged, message in (
        (json.dumps(edited), "field 'sha256'"),
        (text.replace('"schema": 1', '"schema": 9'), "field 'schema' is 9"),
        (text[: len(text) // 2], "not valid JSON"),
        ("[]", "not a JSON object"),
        ("", "not valid JSON"),
    ):
        path.write_text(damaged)
        with pytest.raises(InputError, match=message) as refused:
            Plan.load(path)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")


@pytest.mark.parametrize("key", ["subject", "layers", "encoding", "size_bytes", "measured"])
def test_absent_fields_are_named(mixed_plan, key):
    content = {name: value for name, value in mixed_plan.to_json().items() if name != key}
    with pytest.raises(InputError, match=f"plan.json: field '{key}'"):
        Plan.from_json(content, "plan.json")


def test_an_unknown_format_in_a_plan_is_refused(mixed_plan):
    content = mixed_plan.to_json()
    content["layers"][next(iter(content["layers"]))]["format"] = "int3"
    with pytest.raises(InputError, match="unknown format 'int3'"):
        Plan.from_json(content)
