"""The grammar of formats, their codebook structures and their exact bytes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sedaq.aq.encoding import Encoding, stored_codebooks
from sedaq.aq.formats import AS_IS, Format
from sedaq.errors import InputError

INT8 = Format.parse("int8")


@st.composite
def additive(draw, book: bool = True, grouping: bool = True) -> Format:
    structure = draw(st.sampled_from(["", "m", "h"]))
    bits = draw(st.sampled_from(range(2, 13, 2 if structure == "h" else 1)))
    return Format(
        "additive",
        draw(st.integers(1, 8)),
        bits,
        draw(st.integers(2, 64)),
        structure,
        draw(st.sampled_from(["", "t", "c"])) if grouping else "",
        draw(st.booleans()),
        draw(st.from_regex(r"[A-Za-z0-9_.-]{0,12}", fullmatch=True)) if book else "",
    )


shapes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 70)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)),
)


@given(format=st.one_of(additive(), st.sampled_from([AS_IS, INT8])))
def test_text_and_format_are_one_to_one(format):
    assert Format.parse(str(format)) == format
    assert str(Format.parse(str(format))) == str(format)


REFUSED = (
    "",
    "2x8",
    "x8g8",
    "2x8g",
    "as is",
    "ASIS",
    "int4",
    "2X8G8",
    " 2x8g8",
    "2x8g8\n",
    "2x8g8hm",
    "2x8g8qt",
    "2x8g8q@",
    "2x8g8@a b",
    "2x8g8@a/b",
    "0x8g8",
    "9x8g8",
    "1x1g8",
    "1x13g8",
    "1x8g1",
    "1x8g65",
    "1x5g4h",
    "-1x8g8",
    "2x8.0g8",
    "02x8g8",
    "２x8g8",
    "9" * 5000 + "x8g8",
)


@pytest.mark.parametrize("text", REFUSED)
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match=r"use asis, int8 or MxBgG"):
        Format.parse(text)


def test_stored_entries_of_each_structure():
    assert [Format.parse(f"1x8g8{s}").n_stored_entries for s in ("", "m", "h")] == [256, 128, 32]


@given(format=additive(book=False), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_expansion_gives_the_structure(format, seed):
    stored = torch.randn(format.n_stored_entries, 3, generator=torch.Generator().manual_seed(seed))
    book = format.expansion @ stored
    half = format.n_stored_entries // 2
    for code in torch.randint(format.n_entries, (8,), generator=torch.Generator().manual_seed(seed)).tolist():
        if format.structure == "m":
            expected = stored[code] if code < len(stored) else -stored[code - len(stored)]
        elif format.structure == "h":
            low_bits = format.code_bits // 2
            expected = stored[code >> low_bits] + stored[half + (code & ((1 << low_bits) - 1))]
        else:
            expected = stored[code]
        torch.testing.assert_close(book[code], expected)


def test_mirrored_books_are_their_own_negative():
    book = Format.parse("1x6g4m").expansion @ torch.randn(32, 4)
    torch.testing.assert_close(book[32:], -book[:32])


@given(format=additive(), shape=shapes, seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_size_is_the_bytes_of_the_tensors(format, shape, seed):
    if not format.fits(shape):
        with pytest.raises(InputError, match=str(format)):
            format.size_bytes(shape)
        return
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(format.n_entries, (shape[0], format.n_groups(shape), format.n_codebooks), generator=rng)
    stored = torch.randn(format.n_codebooks, format.n_stored_entries, format.group_size, generator=rng)
    encoding = Encoding.of_codes(format, shape, codes, stored_codebooks(format, stored), torch.ones(shape[0]))
    assert format.size_bytes(shape) == encoding.size_bytes == sum(t.numel() * t.element_size() for t in encoding.tensors.values())
    assert encoding.dequantize().shape == shape
    # Written out: codes at B bits, codebooks at 2 bytes or 1 and a scale, 2 bytes a row.
    groups = math.ceil(math.prod(shape[1:]) / format.group_size)
    books = format.n_codebooks * format.n_stored_entries * format.group_size
    codebook_bytes = books + 2 * format.n_codebooks if format.int8_codebooks else 2 * books
    assert encoding.size_bytes == math.ceil(shape[0] * groups * format.n_codebooks * format.code_bits / 8) + codebook_bytes + 2 * shape[0]


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("2x8g8", (1152, 1152), 2.063),
        ("2x8g8", (384, 384), 2.486),
        ("2x8g8", (192, 192), 3.86),
        ("2x8g8", (960, 960), 2.09),
        ("2x8g8", (128, 128), 6.1),
        ("1x8g8h", (128, 128), 1.375),
        ("1x5g4", (128, 128), 1.5),
        ("3x4g8", (128, 128), 2.0),
        ("2x8g8", (192, 192, 3, 3), 2.21),
        ("2x8g9t", (192, 192, 3, 3), 2.0),
        ("int8", (128, 128), 8.125),
        ("asis", (128, 128), 16.0),
    ],
)
def test_known_rates(text, shape, bits):
    found = Format.parse(text).bits_per_weight(shape)
    assert found == pytest.approx(bits, abs=0.0006 if bits in (2.063, 2.486) else 0.06), found


def test_a_weight_left_as_it_is_counts_in_its_stored_dtype():
    assert AS_IS.size_bytes((3, 5)) == 30
    assert AS_IS.size_bytes((3, 5), torch.float32) == 60
    assert INT8.size_bytes((3, 5)) == 15 + 6


def test_tap_groups_need_a_convolution_with_as_many_taps():
    taps = Format.parse("1x8g9t")
    assert taps.fits((4, 4, 3, 3)) and not taps.fits((4, 4, 2, 2)) and not taps.fits((4, 9))
    assert not Format.parse("1x8g9c").fits((4, 9)) and Format.parse("1x8g8c").fits((4, 4, 1, 1))
