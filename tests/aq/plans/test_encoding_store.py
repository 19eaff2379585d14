"""Encodings on disk: equal to the bit, refused when damaged, made once."""

from __future__ import annotations

import pytest
import torch

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.aq.plans import store as store_module
from sedaq.aq.plans.store import EncodingStore, book_name
from sedaq.errors import InputError
from sedaq.models.subject import Subject
from sedaq.storage import load_tensors, save_tensors

CALIBRATION = {"seed": 0, "n_images": 4, "steps": 2}


def made(text: str = "2x3g4q", shape: tuple[int, ...] = (8, 10)) -> Encoding:
    return encode(torch.randn(shape, generator=torch.Generator().manual_seed(0)), Format.parse(text))


@pytest.mark.parametrize("text", ["1x4g4", "2x3g4q", "1x4g4mq", "1x4g4h", "int8", "asis"])
@pytest.mark.parametrize("shape", [(8, 10), (6, 2, 3, 3)])
def test_save_and_load_are_equal_to_the_bit(text, shape, tmp_path):
    encoding = made(text, shape)
    encoding.save(tmp_path / "e.safetensors")
    loaded = Encoding.load(tmp_path / "e.safetensors")
    assert (loaded.format, loaded.shape, loaded.error, loaded.provenance) == (
        encoding.format,
        encoding.shape,
        encoding.error,
        encoding.provenance,
    )
    assert loaded.tensors.keys() == encoding.tensors.keys()
    assert all(
        torch.equal(loaded.tensors[name], tensor) and loaded.tensors[name].dtype == tensor.dtype
        for name, tensor in encoding.tensors.items()
    )
    assert torch.equal(loaded.dequantize(), encoding.dequantize()) and loaded.size_bytes == encoding.size_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]


def test_any_damaged_byte_and_any_cut_is_refused(tmp_path):
    path = tmp_path / "e.safetensors"
    made().save(path)
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        with pytest.raises(InputError, match=r"e\.safetensors"):
            Encoding.load(path)
    for length in (0, 4, 8, header_end - 1, header_end, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"e\.safetensors"):
            Encoding.load(path)


def test_files_of_another_kind_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Encoding.load(tmp_path / "none.safetensors")
    save_tensors(tmp_path / "h.safetensors", "hessian", {"block0": torch.eye(2)}, {})
    with pytest.raises(InputError, match=r"field 'kind' is 'hessian'"):
        Encoding.load(tmp_path / "h.safetensors")


def test_tensors_that_do_not_belong_to_the_format_are_refused(tmp_path):
    path = tmp_path / "e.safetensors"
    made("1x4g4").save(path)
    tensors, metadata = load_tensors(path, "encoding")
    save_tensors(path, "encoding", tensors, {**metadata, "format": "1x5g4"})
    with pytest.raises(InputError, match=r"1x5g4.*encode the layer again"):
        Encoding.load(path)
    with pytest.raises(InputError, match="expected"):
        Encoding(Format.parse("1x4g4"), (8, 10), {**tensors, "scales": tensors["scales"].float()}, 0.0)


def test_a_denoiser_that_is_one_bare_layer_is_refused(tmp_path):
    subject = Subject(torch.nn.Linear(4, 4), sample=lambda **_: torch.zeros(1, 1, 2, 2), name="bare")
    with pytest.raises(InputError, match=r"subject bare.*put it into a module"):
        EncodingStore(subject, tmp_path, calibration=CALIBRATION)


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Formats that were really encoded."""
    calls: list[str] = []
    original = store_module.encode_objective

    def encode_and_count(objective, format, *args, **kwargs):
        calls.append(str(format))
        return original(objective, format, *args, **kwargs)

    monkeypatch.setattr(store_module, "encode_objective", encode_and_count)
    return calls


def test_an_encoding_is_made_once(subject, tmp_path, counted):
    store = EncodingStore(subject, tmp_path, calibration=CALIBRATION)
    layer, format = subject.layers[2], Format.parse("1x4g4")
    first = store.get(layer, format)
    again = EncodingStore(subject, tmp_path, calibration=CALIBRATION).get(layer, format)
    assert counted == ["1x4g4"]
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert again.provenance == first.provenance and again.provenance["layer"] == layer.name
    store.fill([(layer, format), (layer, Format.parse("asis")), (layer, Format.parse("int8"))])
    assert counted == ["1x4g4", "int8"]


def test_what_changes_an_encoding_changes_its_file(subject, tmp_path, counted):
    layer, format = subject.layers[2], Format.parse("1x4g4")
    settings = [{}, {"effort": "full"}, {"seed": 1}, {"calibration": {**CALIBRATION, "seed": 1}}]
    stores = [EncodingStore(subject, tmp_path / "run", **{"calibration": CALIBRATION, **setting}) for setting in settings]
    for number, store in enumerate(stores[:3], start=1):
        store.get(layer, format)
        assert len(list((tmp_path / "run" / "encodings").iterdir())) == number
    assert counted == ["1x4g4"] * 3
    assert len({store.identity["calibration"] for store in stores}) == 2
    assert stores[3].calibration_fingerprint != stores[0].calibration_fingerprint


def test_an_encoding_uses_the_calibration(subject, tmp_path):
    store = EncodingStore(subject, tmp_path, calibration=CALIBRATION)
    layer = next(layer for layer in subject.layers if layer.kind == "conv2d")
    weight, hessian = subject.weight(layer.name), store.hessian(layer)
    expected = encode(weight, Format.parse("1x4g4"), hessian)
    found = store.get(layer, Format.parse("1x4g4"))
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items()) and found.error == expected.error


def test_an_as_is_weight_keeps_its_stored_dtype(subject, tmp_path):
    encoding = EncodingStore(subject, tmp_path, calibration=CALIBRATION).get(subject.layers[0], Format.parse("asis"))
    assert encoding.tensors["weight"].dtype == torch.float16 and list(tmp_path.iterdir()) == []
    assert torch.equal(encoding.dequantize(), subject.weight(subject.layers[0].name))


@pytest.mark.parametrize("kind", ["encodings", "books", "calibration"])
def test_a_damaged_file_in_the_store_is_made_again(subject, tmp_path, kind, caplog):
    store = EncodingStore(subject, tmp_path, calibration=CALIBRATION)
    layer = subject.layers[2]
    format = Format.parse(f"1x4g4@{book_name(layer)}")
    first = store.get(layer, format)
    path = next(path for path in (tmp_path / kind).iterdir() if kind == "books" or path.name.startswith(layer.name))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with caplog.at_level("WARNING", "sedaq"):
        again = {
            "encodings": store.get,
            "books": lambda _, format: store.book(format),
            "calibration": lambda layer, _: store.hessian(layer),
        }[kind](layer, format)
    assert f"{path}: damaged; the " in caplog.text
    if kind == "encodings":  # the time that it took is stored, too
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
        assert Encoding.load(path).error == first.error
    else:
        assert path.read_bytes() == whole


def test_unknown_effort_is_refused_before_any_work(subject, tmp_path):
    with pytest.raises(InputError, match="`effort` 'best'"):
        EncodingStore(subject, tmp_path, calibration=CALIBRATION, effort="best")


BOTH = [(kind, other) for kind in ("encodings", "calibration") for other in ("layer", "seed")]


@pytest.mark.parametrize(("kind", "other"), [*BOTH, ("books", "seed")])  # books are of roles, not of layers
def test_a_file_of_another_layer_or_run_is_made_again(kind, other, subject, tmp_path, caplog):
    """Even where it has the right shape, and is of an earlier version, which did not note the names of files."""
    store = EncodingStore(subject, tmp_path / "one", calibration=CALIBRATION)
    theirs = store if other == "layer" else EncodingStore(subject, tmp_path / "two", calibration={**CALIBRATION, "seed": 1})
    layer = subject.layers[2]
    second = next(found for found in subject.layers if found.shape == layer.shape and found != layer) if other == "layer" else layer
    if kind == "books":
        format = Format.parse(f"1x4g4@{book_name(layer)}")
        mine, foreign = store.book_task(format), theirs.book_task(format)
    elif kind == "encodings":
        mine, foreign = store.task(layer, Format.parse("1x4g4")), theirs.task(second, Format.parse("1x4g4"))
    else:
        mine, foreign = store._hessian_task(layer), theirs._hessian_task(second)
    mine.result(), foreign.result()
    wanted = load_tensors(mine.path, kind_of(kind))[0]
    for of_earlier_version in (False, True):
        tensors, metadata = load_tensors(foreign.path, kind_of(kind))
        if of_earlier_version:
            if kind == "books":
                continue
            del metadata["artifact"]
        save_tensors(mine.path, kind_of(kind), tensors, metadata)
        caplog.clear()
        mine.result()
        assert f"{mine.path}: damaged; the " in caplog.text
        found = load_tensors(mine.path, kind_of(kind))[0]
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def kind_of(folder: str) -> str:
    return {"encodings": "encoding", "calibration": "hessian", "books": "book"}[folder]
