"""Codes of B bits take exactly B bits and come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sedaq.aq.packing import pack, unpack


@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("bits", range(1, 16))
@given(shape=st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3)), seed=st.integers(0, 999))
def test_round_trip_and_bytes(bits, shape, seed):
    codes = torch.randint(1 << bits, shape, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (-(-codes.numel() * bits // 8),)
    found = unpack(packed, bits, shape)
    assert torch.equal(found, codes) and found.element_size() == (1 if bits <= 8 else 2)
    assert bits != 8 or found.data_ptr() == packed.data_ptr()


@pytest.mark.parametrize("bits", range(1, 16))
def test_extreme_codes(bits):
    codes = torch.tensor([(1 << bits) - 1, 0, (1 << bits) - 1, 1 << (bits - 1)])
    assert torch.equal(unpack(pack(codes, bits), bits, (4,)), codes)


def test_the_stream_is_least_significant_bit_first():
    # 3-bit codes 1, 2, 5 read as one number: 1 + 2·2³ + 5·2⁶ = 337 = 0x151
    assert pack(torch.tensor([1, 2, 5]), 3).tolist() == [0x51, 0x01]
