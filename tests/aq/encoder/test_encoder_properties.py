"""What holds for encodings of any shape and format: shapes, bytes in memory and on disk, files, and less error for more bits."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.encoding import Encoding, quantized_matrix
from sedaq.aq.formats import Format
from sedaq.aq.packing import pack, unpack

FEW = settings(max_examples=25, deadline=None)
shapes = st.one_of(
    st.tuples(st.integers(1, 24), st.integers(1, 30)),
    st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 3)),
    st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
)


@st.composite
def formats(draw, bits: int = 6) -> Format:
    structure = draw(st.sampled_from(["", "m", "h"]))
    code_bits = draw(st.sampled_from(range(2, bits + 1, 2 if structure == "h" else 1)))
    return Format("additive", draw(st.integers(1, 3)), code_bits, draw(st.integers(2, 20)), structure, int8_codebooks=draw(st.booleans()))


any_format = st.one_of(formats(), st.sampled_from([Format("int8"), Format("asis")]))


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(n_in: int, seed: int = 0, groups: int = 1) -> torch.Tensor:
    x = gaussian(groups, n_in + 2, n_in, seed=seed + 1000)
    return x.transpose(1, 2) @ x / (n_in + 2)


def saved_and_loaded(encoding: Encoding) -> tuple[Encoding, int]:
    """And the bytes of all tensors in the file: what follows the header."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.safetensors"
        encoding.save(path)
        whole = path.read_bytes()
        return Encoding.load(path), len(whole) - 8 - int.from_bytes(whole[:8], "little")


@FEW
@given(format=any_format, shape=shapes, seed=st.integers(0, 99))
def test_shape_and_bytes_in_memory_and_on_disk(format, shape, seed):
    encoding = encode(gaussian(*shape, seed=seed), format, moment(math.prod(shape[1:]), seed))
    dense = encoding.dequantize()
    assert dense.shape == shape and dense.isfinite().all()
    loaded, on_disk = saved_and_loaded(encoding)
    stored = encoding.tensors["weight"].dtype if format.kind == "asis" else torch.float16
    assert encoding.size_bytes == format.size_bytes(shape, stored) == on_disk == loaded.size_bytes


@FEW
@given(format=any_format, shape=shapes, seed=st.integers(0, 99))
def test_save_and_load_are_equal_to_the_bit(format, shape, seed):
    encoding = encode(gaussian(*shape, seed=seed), format, seed=seed)
    loaded, _ = saved_and_loaded(encoding)
    assert (loaded.format, loaded.shape, loaded.error, loaded.provenance) == (format, shape, encoding.error, encoding.provenance)
    assert loaded.tensors.keys() == encoding.tensors.keys()
    for name, tensor in encoding.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype and torch.equal(loaded.tensors[name], tensor)
    assert torch.equal(loaded.dequantize(), encoding.dequantize())


@FEW
@given(
    format=formats(),
    groups=st.integers(1, 6),
    per_group=st.integers(1, 4),
    channels=st.integers(1, 4),
    taps=st.sampled_from([(1,), (3,), (2, 2)]),
    seed=st.integers(0, 99),
)
def test_grouped_convolutions(format, groups, per_group, channels, taps, seed):
    weight = gaussian(groups * per_group, channels, *taps, seed=seed)
    n_in = math.prod(weight.shape[1:])
    h = moment(n_in, seed, groups)
    encoding = encode(weight, format, h, groups=groups)
    dense = encoding.dequantize()
    assert dense.shape == weight.shape and encoding.size_bytes == format.size_bytes(tuple(weight.shape))
    w, d = (x.double().reshape(groups, per_group, n_in) for x in (weight, weight - dense))
    expected = ((d @ h.double()) * d).sum() / ((w @ h.double()) * w).sum()
    assert encoding.error == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)


@FEW
@given(format=formats(), shape=shapes, seed=st.integers(0, 99))
def test_codes_are_within_their_codebooks_and_padding_is_cut_off(format, shape, seed):
    encoding = encode(gaussian(*shape, seed=seed), format)
    matrix = quantized_matrix(format, shape, encoding.tensors)
    assert matrix.codes.shape == (shape[0], format.n_groups(shape), format.n_codebooks)
    assert matrix.codes.min() >= 0 and matrix.codes.max() < format.n_entries
    assert torch.equal(pack(matrix.codes, format.code_bits), encoding.tensors["codes"])


@FEW
@given(shape=shapes, format=formats(), seed=st.integers(0, 99))
def test_a_weight_is_encoded_the_same_way_twice_and_not_worse_than_nothing(shape, format, seed):
    """The zero matrix has error one."""
    weight, h = gaussian(*shape, seed=seed), moment(math.prod(shape[1:]), seed)
    first, again = (encode(weight, format, h, seed=seed) for _ in range(2))
    assert first.error == again.error and all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert 0 <= first.error < 1


@FEW
@given(bits=st.sampled_from([3, 4]), g=st.integers(2, 8), structure=st.sampled_from(["", "m"]), seed=st.integers(0, 99))
def test_the_error_falls_with_the_number_of_codebooks(bits, g, structure, seed):
    weight, h = gaussian(48, 8 * g, seed=seed), moment(8 * g, seed)
    errors = [encode(weight, Format.parse(f"{m}x{bits}g{g}{structure}"), h).error for m in (1, 2, 4)]
    assert errors[2] < 0.9 * errors[1] < 0.81 * errors[0], errors


@FEW
@pytest.mark.parametrize("bits", range(2, 13))
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 4)), seed=st.integers(0, 999))
def test_codes_come_back_from_their_bits(bits, shape, seed):
    codes = torch.randint(1 << bits, shape, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.numel() == math.ceil(codes.numel() * bits / 8) and torch.equal(unpack(packed, bits, shape), codes)
