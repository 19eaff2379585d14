"""Image files as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from ..storage import file_sha256, fingerprint

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH_SIZE = 256  # images
MAX_UNPACKED, MOST_PACKED = 1 << 26, 100  # bytes of an array, above which it may not be packed more than so many times
# What Pillow and NumPy raise for files that are damaged, or larger than they should be.
UNREADABLE = (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, MemoryError)


def image_batches(path: Path, image_shape: tuple[int, ...]) -> tuple[int, Iterator[Tensor]]:
    """Number of images and uint8 batches (b, C, H, W), of a folder's files at any depth or of an .npz with one uint8 array.

    Raises:
        InputError: nothing there, files that are no images, images of another shape.
    """
    if path.is_dir():
        return _folder_batches(path, image_shape)
    if path.suffix != ".npz":
        raise InputError(f"{path}: holds no images; name a folder of images or an .npz")
    return _array_batches(path, image_shape)


def image_files(argument: str, folder: Path) -> list[Path]:
    """The image files of a folder by their names. Raises InputError where there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise InputError(f"`{argument}` {folder}: holds no images ({', '.join(SUFFIXES)}); give a folder of them")
    return found


def opened_images(argument: str, folder: Path) -> list[Image.Image]:
    """The images of a folder, in colour. Raises InputError for files that are none."""
    opened = []
    for path in image_files(argument, folder):
        try:
            opened.append(Image.open(path).convert("RGB"))
        except UNREADABLE as error:
            raise InputError(f"{path}: not a readable image; remove it or replace it") from error
    return opened


def files_fingerprint(argument: str, folder: Path) -> str:
    """Of the images' bytes, in the order of their names."""
    return fingerprint([file_sha256(path) for path in image_files(argument, folder)])


def all_images(path: Path, image_shape: tuple[int, ...]) -> Tensor:
    """(n, C, H, W) float32 in [0, 1]. Raises InputError as image_batches."""
    return torch.cat([batch.float() / 255 for batch in image_batches(path, image_shape)[1]])


def _check_shape(where: str, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    if shape != image_shape:
        raise InputError(
            f"{where}: image of shape {shape} where the model makes {image_shape} (channels, height, width); resize the images"
        )


def _read_image(path: Path, image_shape: tuple[int, ...]) -> Tensor:
    """One image file as uint8 (C, H, W). Gray files serve a model of colour images; colour files do not serve a gray one."""
    try:
        with Image.open(path) as file:
            if file.size != (image_shape[2], image_shape[1]):  # before it is unpacked: it may be huge
                _check_shape(str(path), (image_shape[0], file.height, file.width), image_shape)
            gray = file.mode in ("1", "L", "LA") and image_shape[0] == 1
            pixels = np.array(file.convert("L" if gray else "RGB"))
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable image; remove it or replace it") from error
    image = torch.from_numpy(pixels)
    image = image.unsqueeze(0) if gray else image.permute(2, 0, 1)
    _check_shape(str(path), tuple(image.shape), image_shape)
    return image


def _folder_batches(folder: Path, image_shape: tuple[int, ...]) -> tuple[int, Iterator[Tensor]]:
    """Number of images and uint8 batches of all image files below `folder`, in the order of their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder}: no image below it; files of {', '.join(SUFFIXES)} are looked for")
    starts = range(0, len(paths), BATCH_SIZE)
    return len(paths), (torch.stack([_read_image(path, image_shape) for path in paths[i : i + BATCH_SIZE]]) for i in starts)


def _read_array(path: Path, image_shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an .npz; other arrays beside it, such as statistics, are ignored. Nothing is unpacked that is no array of such images."""
    try:
        with np.load(path, allow_pickle=False) as file, ZipFile(path) as archive:
            headers = {name: _header(archive, name) for name in archive.namelist()}
            wanted = [name for name, (shape, dtype) in headers.items() if dtype == np.uint8 and len(shape) in (3, 4)]
            if len(wanted) != 1:
                found = ", ".join(f"{name.removesuffix('.npy')} {dtype}{list(shape)}" for name, (shape, dtype) in headers.items())
                raise InputError(f"{path}: needs one uint8 array of images (n, H, W, C), (n, C, H, W) or (n, H, W), but holds {found}")
            _check_size(path, archive.getinfo(wanted[0]), headers[wanted[0]][0], image_shape)
            return np.asarray(file[wanted[0].removesuffix(".npy")])
    except InputError:
        raise
    except Exception as error:  # of zip files, of zlib, and of headers that Python evaluates
        raise InputError(f"{path}: cannot be read as .npz; it is damaged or no such file") from error


def _header(archive: ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array in an archive."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype


def _check_size(path: Path, stored: ZipInfo, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    """Raise InputError for an array that is no images of this size, or far larger than what it is packed into."""
    channels, height, width = image_shape
    if shape[1:] not in ((height, width), (height, width, channels), image_shape):
        _check_shape(str(path), (shape[3], *shape[1:3]) if len(shape) == 4 else (1, *shape[1:]), image_shape)
    if stored.file_size > MAX_UNPACKED and stored.file_size > MOST_PACKED * stored.compress_size:
        raise InputError(
            f"{path}: unpacks to {stored.file_size:,} bytes from {stored.compress_size:,}, as no images do; make it again from images"
        )


def _array_batches(path: Path, image_shape: tuple[int, ...]) -> tuple[int, Iterator[Tensor]]:
    images = torch.from_numpy(_read_array(path, image_shape))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif tuple(images.shape[1:]) != image_shape:
        images = images.permute(0, 3, 1, 2)
    _check_shape(str(path), tuple(images.shape[1:]), image_shape)
    return len(images), iter(images.split(BATCH_SIZE))
