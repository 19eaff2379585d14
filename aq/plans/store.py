"""Calibration matrices and encodings on disk: each is made once, by whoever asks first.

calibration/<layer>.<calibration>.safetensors   H of one layer
encodings/<layer>.<format>.<key>.safetensors    key: weight, format, calibration, effort and seed
books/<format>.<key>.safetensors                codebooks that the layers of one role share
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ...models.calibration import calibrate, check_weighting
from ...models.hessian import Hessian
from ...models.layers import Layer
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...progress import track
from ...runtime.fan_out import FanOut
from ...runtime.owner import artifact
from ...runtime.tasks import Task, as_damage, locked
from ...storage import fingerprint, load_tensors, save_tensors
from ..encoder.encoder import encode_objective, fit_book, parse_effort
from ..encoder.objective import Objective
from ..encoding import Encoding
from ..formats import BOOK_TENSORS, Format
from .given_hessians import read_hessian

ALONE_ABOVE = 1 << 21  # weights of a layer that is encoded alone; smaller ones are encoded several at once
_FOLDERS = ("input_images", "input_masks")  # of which a calibration knows the fingerprints alone
MAX_BOOK_MEMBERS = 16  # layers that shared codebooks are fitted on at most, twice as many at worst


def _sampling(calibration: Mapping[str, Any], given: SamplingConfig) -> SamplingConfig:
    """How to sample for a calibration. Raises InputError where it took input images and none are given, or others."""
    named = {name: value for name in ("batch_size", *_FOLDERS) if (value := getattr(given, name)) is not None}
    found = SamplingConfig.from_dict({**{name: value for name, value in calibration.items() if name not in _FOLDERS}, **named})
    for name in _FOLDERS:
        if calibration.get(name) != found.identity.get(name):
            raise InputError(f"`{name}`: not those that were calibrated with; give the same folder")
    return found


class EncodingStore(FanOut):
    """Encodings of one subject under one calibration, kept in `folder`.

    Args:
        calibration: what the calibration matrices depend on besides the subject: seed, n_images, weighting, steps, and a SamplingConfig's
            identity.
            Without images nothing is sampled, and every calibration matrix is the identity.
        hessians: safetensors file with a matrix (in, in), or (groups, in, in), for each layer by its path, in the place of a calibration; its
            fingerprint is in `calibration`.
        effort, seed: of the encoder.
        given: what `calibration` cannot say of sampling: how many images at once, and where input images lie, of which it has fingerprints.
        reopen: opens this store again in another process, and can be pickled; without it all is made by this process and its forks.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        *,
        calibration: Mapping[str, Any],
        effort: str = "fast",
        seed: int = 0,
        given: SamplingConfig | None = None,
        hessians: Path | None = None,
        reopen: Callable[[], EncodingStore] | None = None,
    ) -> None:
        parse_effort(effort)
        check_weighting(calibration.get("weighting", "uniform"))
        if any(not layer.name for layer in subject.layers):
            raise InputError(f"subject {subject.name}: its denoiser is one bare layer, which has no place in a model; put it into a module")
        self.subject, self.folder = subject, Path(folder)
        self.calibration, self.effort, self.seed, self.hessians = dict(calibration), effort, seed, hessians
        self.sampling = _sampling(calibration, given or SamplingConfig())
        self.calibration_fingerprint = fingerprint([subject.fingerprint, self.calibration])
        self._fingerprints: dict[str, str] = {}  # of weights
        self._objective: tuple[str, Objective] | None = None  # of the layer that was encoded last, and its name
        self._reopen = reopen

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it is opened from, for workers in other processes."""
        if self._reopen is None:
            raise InputError(f"{self.folder}: these encodings belong to no run that other processes could open; use the executor 'serial'")
        return self._reopen, ()

    @property
    def identity(self) -> dict[str, Any]:
        """What plan.json's `encoding` field holds."""
        return {
            "effort": self.effort,
            "seed": self.seed,
            "calibration": self.calibration_fingerprint,
            "calibration_settings": self.calibration,
        }

    # -- calibration -----------------------------------------------------------------------------------------------------------------

    def _hessian_task(self, layer: Layer) -> Task[Hessian]:
        owner = {"layer": layer.name, "calibration": self.calibration_fingerprint}

        def write(path: Path, hessian: Hessian) -> None:
            tensors = {f"block{i}": block for i, block in enumerate(hessian.blocks)}
            save_tensors(path, "hessian", tensors, {**owner, **artifact(path)})

        def read(path: Path) -> Hessian:
            tensors, _ = load_tensors(path, "hessian", owner={**owner, **artifact(path)})
            with as_damage(path):
                found = Hessian(tuple(tensors[f"block{i}"] for i in range(len(tensors))))
                if [block.shape for block in found.blocks] != [
                    block.shape for block in Hessian.identity_of(layer.shape, layer.groups).blocks
                ]:
                    raise InputError(f"its blocks are not those of layer {layer.name}")
            return found

        return Task(
            f"calibration matrix of {layer.name}",
            self.folder / "calibration" / f"{layer.name}.{self.calibration_fingerprint}.safetensors",
            lambda: next(self._calibrated([layer]))[1],
            write,
            read,
        )

    def calibrate(self, memory_bytes: int | None = None) -> None:
        """Make the calibration matrices that are missing, all in as few samplings as `memory_bytes` allows."""
        if not self.uncalibrated():
            return
        with locked(self.folder / "calibration" / self.calibration_fingerprint):
            missing = self.uncalibrated()  # another process may have made some meanwhile
            for layer, hessian in self._calibrated(missing, memory_bytes):
                task = self._hessian_task(layer)
                task.write(task.path, hessian)

    def _calibrated(self, layers: Sequence[Layer], memory_bytes: int | None = None) -> Iterator[tuple[Layer, Hessian]]:
        own = {name: self.calibration[name] for name in ("seed", "n_images", "weighting", "spread") if name in self.calibration}
        return calibrate(self.subject, layers, sampling=self.sampling, memory_bytes=memory_bytes, **own)

    def uncalibrated(self) -> list[Layer]:
        """Layers whose calibration matrices are still to be made."""
        return [] if self._is_blind or self.hessians else [layer for layer in self.subject.layers if not self._hessian_task(layer).is_done]

    @property
    def _is_blind(self) -> bool:
        """Whether nothing is sampled to calibrate."""
        return self.calibration.get("n_images") == 0

    def hessian(self, layer: Layer) -> Hessian:
        """The calibration matrix of a layer, the identity without calibration images. Those of all layers are made now if it is missing."""
        if self.hessians is not None:
            return read_hessian(self.hessians, layer)
        if self._is_blind:
            return Hessian.identity_of(layer.shape, layer.groups)
        task = self._hessian_task(layer)
        if not task.is_done:
            self.calibrate()
        return task.result()

    # -- encodings -------------------------------------------------------------------------------------------------------------------

    def key(self, names: Iterable[str], *what: Any) -> str:
        """Fingerprint of something made from the weights and calibration of layers."""
        for name in names:
            if name not in self._fingerprints:
                self._fingerprints[name] = self.subject.weight_fingerprint(name)
        return fingerprint([*(self._fingerprints[name] for name in names), *what, self.calibration_fingerprint, self.seed])

    def task(self, layer: Layer, format: Format) -> Task[Encoding]:
        """Encodes a layer in a format that has codes."""
        sharers = [member.name for member in self.sharers(format)] if format.book else []
        key = self.key([layer.name, *sharers], str(format), self.effort)
        what = {"format": str(format), "shape": list(layer.shape), "effort": self.effort, "seed": self.seed}
        owner = {**self._made_of(layer), **what}
        return Task(
            f"encoding of {layer.name} in {format}",
            self.folder / "encodings" / f"{layer.name}.{format}.{key}.safetensors",
            lambda: self._encode(layer, format),
            write=lambda path, encoding: encoding.save(path),
            read=lambda path: Encoding.load(path, owner={**owner, **artifact(path)}),
        )

    def sharers(self, format: Format) -> list[Layer]:
        """The layers whose codebooks `format` names: all of one role that can have it. Raises InputError if there are none."""
        named = [layer for layer in self.subject.layers if book_name(layer) == format.book]
        if not named:
            books = ", ".join(sorted({book_name(layer) for layer in self.subject.layers}))
            raise InputError(f"format {format}: there is no role {format.book!r} whose layers could share codebooks; the roles are {books}")
        fitting = [layer for layer in named if format.fits(layer.shape)]
        if not fitting:
            raise InputError(f"format {format}: no layer of the role {format.book!r} can have it; use another grouping")
        return fitting

    def book_task(self, format: Format) -> Task[dict[str, torch.Tensor]]:
        """Fits the codebooks of a format that shares them; the result is what is stored of them."""
        members = self.sharers(format)
        names = [member.name for member in members]
        specs = {name: spec for name, spec in format.tensor_specs(members[0].shape).items() if name in BOOK_TENSORS}

        def read(path: Path) -> dict[str, torch.Tensor]:
            tensors, _ = load_tensors(path, "book", owner={"format": str(format), **artifact(path)})
            with as_damage(path):
                if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} != specs:
                    raise InputError(f"its tensors are not those of format {format}")
            return tensors

        return Task(
            f"shared codebooks of {format}",
            self.folder / "books" / f"{format}.{self.key(names, str(format), self.effort)}.safetensors",
            lambda: self.fit_book(format, effort=self.effort),
            write=lambda path, tensors: save_tensors(path, "book", tensors, {"format": str(format), **artifact(path)}),
            read=read,
        )

    def book(self, format: Format) -> dict[str, torch.Tensor]:
        """Stored codebooks of a format that shares them, fitted now if they are not there yet."""
        return self.book_task(format).result()

    def fit_book(self, format: Format, *, effort: str) -> dict[str, torch.Tensor]:
        """Stored codebooks that are not kept."""
        members = self.sharers(format)
        spread = members[:: max(1, len(members) // MAX_BOOK_MEMBERS)]  # of a deep model: every so many blocks
        return fit_book([self.objective(member) for member in spread], format, effort=effort, seed=self.seed)

    def objective(self, layer: Layer) -> Objective:
        """What an encoding of the layer minimises; kept until another layer's is asked for."""
        if self._objective is None or self._objective[0] != layer.name:
            self._objective = None  # its matrices make room for the next ones
            self._objective = layer.name, Objective.of(self.subject.weight(layer.name), self.hessian(layer), layer.groups)
        return self._objective[1]

    def holds(self, layer: Layer, format: Format) -> bool:
        """Whether `get` only has to read."""
        return format.kind == "asis" or self.task(layer, format).is_done

    def get(self, layer: Layer, format: Format) -> Encoding:
        """The encoding, made now if it is not there yet. Raises InputError, which names the layer, where it cannot be made."""
        if format.kind == "asis":
            stored = self.subject.tensor_specs[f"{layer.name}.weight"][0]
            return Encoding(format, layer.shape, {"weight": self.subject.weight(layer.name).to(stored)}, 0.0)
        return self.task(layer, format).result()

    def _encode(self, layer: Layer, format: Format) -> Encoding:
        try:
            return encode_objective(
                self.objective(layer),
                format,
                effort=self.effort,
                seed=self.seed,
                book=self.book(format) if format.book else None,
                provenance=self._made_of(layer),
            )
        except InputError as error:
            raise InputError(f"layer {layer.name}: {error}") from error

    def _made_of(self, layer: Layer) -> dict[str, str | int | float]:
        return {"layer": layer.name, "calibration": self.calibration_fingerprint}

    def fill(self, wanted: Sequence[tuple[Layer, Format]]) -> None:
        """Make all encodings that are missing, with progress; several layers at once, as torch has threads."""
        self.calibrate()
        with_codes = [(layer, format) for layer, format in wanted if format.kind != "asis"]
        missing = [(layer, format) for layer, format in with_codes if not self.holds(layer, format)]
        books = list(dict.fromkeys(format for _, format in missing if format.book))
        if books:
            fitted = self.make(
                EncodingStore.book_task, [(format,) for format in books], alone=lambda format: is_large(self.sharers(format)[0])
            )
            for _ in track(fitted, "shared codebooks", len(books)):
                pass
        total = sum(layer.n_weights for layer, _ in with_codes)
        done = total - sum(layer.n_weights for layer, _ in missing)
        encoded = self.make(EncodingStore.task, missing, alone=lambda layer, _: is_large(layer))
        for _ in track(encoded, "encoding", total, done=done, cost=lambda item: item[0].n_weights):
            pass


def is_large(layer: Layer) -> bool:
    """Whether a layer is worth all threads."""
    return layer.n_weights > ALONE_ABOVE


class StoredEncodings(Mapping[str, Encoding]):
    """The encodings of a plan's layers by name, read when they are asked for; the last one stays in memory."""

    def __init__(self, store: EncodingStore, formats: Mapping[str, Format]) -> None:
        self._store, self._formats = store, {layer.name: formats[layer.name] for layer in store.subject.layers}
        self._last: tuple[str, Encoding] | None = None

    def __getitem__(self, name: str) -> Encoding:
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self._store.get(self._store.subject.layer(name), self._formats[name])
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._formats)

    def __len__(self) -> int:
        return len(self._formats)


def book_name(layer: Layer) -> str:
    """The name of the codebooks that layers of this one's role share, as it stands in a format."""
    return re.sub(r"[^A-Za-z0-9]+", "-", layer.role).strip("-")
