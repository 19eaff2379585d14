"""References: the three forms agree, and each refuses what does not fit."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sedaq.errors import InputError
from sedaq.sensitivity.metrics import reference as module
from sedaq.sensitivity.metrics.extractors import load_extractor
from sedaq.sensitivity.metrics.frechet import Statistics, frechet_distance
from sedaq.sensitivity.metrics.reference import Reference, build_reference, load_reference, save_reference, shipped_reference
from sedaq.sensitivity.metrics.sample import Features


@dataclass
class Pixels:
    """The first eight pixels as pooled features, the next six as spatial ones."""

    name: str = "pixels"
    fingerprint: str = "1"

    def __call__(self, images: torch.Tensor) -> Features:
        flat = images.flatten(1)
        return Features(flat[:, :8], flat[:, 8:14])


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)


def write_folder(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


def assert_same(a: Reference, b: Reference) -> None:
    assert a.statistics.n == b.statistics.n
    torch.testing.assert_close(a.statistics.scatter, b.statistics.scatter)
    torch.testing.assert_close(a.statistics.mean, b.statistics.mean)
    assert a.features is not None and b.features is not None and a.features.equal(b.features)
    assert a.spatial is not None and b.spatial is not None
    torch.testing.assert_close(a.spatial.covariance, b.spatial.covariance)
    assert a.fingerprint == b.fingerprint


def test_folder_array_and_statistics_agree(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 16)
    extractor, shape = Pixels(), (3, 6, 5)
    np.savez(tmp_path / "nhwc.npz", images=images, labels=np.arange(40))
    np.savez(tmp_path / "nchw.npz", images.transpose(0, 3, 1, 2))
    folder = load_reference(write_folder(tmp_path / "folder", images), extractor, image_shape=shape)
    expected = Statistics.of(torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1)[:, :8] / 255)
    torch.testing.assert_close(folder.statistics.covariance, expected.covariance)
    save_reference(tmp_path / "stored.safetensors", folder, extractor)
    for name in ("nhwc.npz", "nchw.npz", "stored.safetensors"):
        assert_same(folder, load_reference(tmp_path / name, extractor, image_shape=shape))


def test_gray_images(tmp_path: Path, images: np.ndarray) -> None:
    gray = images[..., 0]
    np.savez(tmp_path / "gray.npz", gray)
    folder = write_folder(tmp_path / "folder", gray)
    array = load_reference(tmp_path / "gray.npz", Pixels(), image_shape=(1, 6, 5))
    assert_same(load_reference(folder, Pixels(), image_shape=(1, 6, 5)), array)
    assert load_reference(folder, Pixels(), image_shape=(3, 6, 5)).statistics.n == 40


def test_fingerprint_changes_with_images_and_extractor(tmp_path: Path, images: np.ndarray) -> None:
    marks = set()
    for i, (changed, extractor) in enumerate([(images, Pixels()), (images ^ 1, Pixels()), (images, Pixels(fingerprint="2"))]):
        np.savez(tmp_path / f"{i}.npz", changed)
        marks.add(load_reference(tmp_path / f"{i}.npz", extractor, image_shape=(3, 6, 5)).fingerprint)
    assert len(marks) == 3


def test_wrong_shape_names_file_and_both_shapes(tmp_path: Path, images: np.ndarray) -> None:
    folder = write_folder(tmp_path / "folder", images)
    with pytest.raises(InputError, match=r"000\.png.*\(3, 6, 5\).*\(3, 8, 8\).*resize"):
        load_reference(folder, Pixels(), image_shape=(3, 8, 8))
    with pytest.raises(InputError, match=r"000\.png.*\(3, 6, 5\).*\(1, 6, 5\)"):
        load_reference(folder, Pixels(), image_shape=(1, 6, 5))
    np.savez(tmp_path / "a.npz", images)
    with pytest.raises(InputError, match=r"a\.npz.*\(3, 6, 5\).*\(3, 8, 8\)"):
        load_reference(tmp_path / "a.npz", Pixels(), image_shape=(3, 8, 8))


def test_unreadable_inputs(tmp_path: Path, images: np.ndarray) -> None:
    folder = write_folder(tmp_path / "folder", images[:3])
    (folder / "001.png").write_bytes(b"no image")
    (tmp_path / "damaged.npz").write_bytes(b"PK no archive")
    np.savez(tmp_path / "floats.npz", images / 255)
    (tmp_path / "empty").mkdir()
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((800_000, 3, 6, 5), np.uint8))
    np.savez(tmp_path / "other.npz", np.zeros((2, 9, 9, 3), np.uint8))
    np.save(tmp_path / "array.npy", images)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "objects.npz", np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 3, 6, 5), }\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    expected = {
        "folder": "001.png",
        "damaged.npz": "damaged",
        "bomb.npz": "unpacks to .* as no images do",
        "claims.npz": "damaged",
        "other.npz": r"\(3, 9, 9\)",
        "array.npz": "damaged",
        "objects.npz": "needs one uint8 array.*object",
        "floats.npz": "needs one uint8 array.*float64",
        "empty": "no image",
        "absent": "no ref",
        "absent.npz": "cannot be read",
        "absent.safetensors": "cannot be read",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            load_reference(tmp_path / name, Pixels(), image_shape=(3, 6, 5))


def test_stored_statistics_are_refused_when_damaged_or_foreign(tmp_path: Path) -> None:
    path, extractor = tmp_path / "stored.safetensors", Pixels()
    batches = [torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))]
    save_reference(path, build_reference(batches, extractor, description="noise", identity="x"), extractor)
    with pytest.raises(InputError, match="made by extractor pixels"):
        load_reference(path, Pixels(fingerprint="2"), image_shape=(1, 4, 4))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_reference(path, extractor, image_shape=(1, 4, 4))


def test_no_images_and_default() -> None:
    with pytest.raises(InputError, match="at least 2"):
        build_reference([], Pixels(), description="nothing", identity="x")
    with pytest.raises(InputError, match="no reference given"):
        load_reference(None, Pixels(), image_shape=(1, 4, 4))
    made = build_reference([torch.rand(4, 1, 4, 4)], Pixels(), description="noise", identity="x")
    assert load_reference(None, Pixels(), image_shape=(1, 4, 4), default=lambda: made) is made


def test_sample_for_the_kernel_distance_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_FEATURES", 100)
    batches = [torch.full((10, 1, 4, 4), i / 256) for i in range(100)]
    features = build_reference(batches, Pixels(), description="ramp", identity="x").features
    assert features is not None and features.shape == (100, 8)
    assert features[:, 0].mean().item() == pytest.approx(49.5 / 256, abs=3 * 0.11 / 10)


def test_shipped_references() -> None:
    extractor = load_extractor("embedded", image_shape=(1, 28, 28))
    train, test = shipped_reference("train", extractor), shipped_reference("test", extractor)
    assert (train.statistics.n, test.statistics.n) == (60_000, 10_000)
    assert train.features is not None and train.features.shape == (1000, 128)
    assert 0 < frechet_distance(train.statistics, test.statistics) < 1.5
    with pytest.raises(InputError, match="embedded"):
        shipped_reference("train", Pixels())
