"""Feature extractors: images in, the features out in which Fréchet and kernel distances are taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...errors import InputError
from ...models.sampling import Condition
from ...models.shipped.classifier import DigitClassifier
from ...storage import cache_folder, file_sha256, fingerprint, parsed, tensor_fingerprint
from .inception import InceptionV3
from .sample import Features

__all__ = ["CHOICES", "EXTRACTORS", "Extractor", "Features", "load_extractor"]

CLASSIFIER = Path(__file__).parents[2] / "models" / "shipped" / "classifier"
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
CHOICES = (
    "embedded (digits, 1×28×28 or 1×32×32), inception or inception:FILE "
    f"({INCEPTION_FILE}, as published with pytorch-fid), transformers:FOLDER (a vision model such as DINOv2 or CLIP)"
)
Shape = tuple[int, int, int]  # (C, H, W) of one image


class Extractor(Protocol):
    """Maps images (n, C, H, W) in [0, 1] to features. `fingerprint` changes with whatever changes the numbers."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor) -> Features: ...

    def requested(self, conditions: Sequence[Condition] | None) -> Tensor | None:
        """What measure compares images with: classes (n,), or the prompts' embeddings (n, p); None where the extractor has no use for them."""


class NetworkExtractor:
    """An extractor that is a network: works in batches, in inference mode, and hands back features on the CPU in float32.

    Args:
        forward: images (b, C, H, W) in [0, 1] on `device` → Features.
        in_channels: gray images are repeated to that many channels.
        read: prompts → embeddings (n, p), where the network reads text.
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        forward: Callable[[Tensor], Features],
        *,
        in_channels: int,
        batch_size: int,
        device: str,
        read: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._forward = forward
        self._in_channels = in_channels
        self._batch_size = batch_size
        self._device = device
        self._read = read

    def __call__(self, images: Tensor) -> Features:
        if images.ndim == 5:
            return self._of_videos(images)
        if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, self._in_channels):
            raise InputError(
                f"extractor {self.name}: images have shape {tuple(images.shape)} where (n, 1 or {self._in_channels}, H, W) is expected; "
                f"choose another extractor: {CHOICES}"
            )
        with torch.inference_mode():
            return Features.cat([self._features(batch) for batch in images.split(self._batch_size)])

    def _of_videos(self, videos: Tensor) -> Features:
        """Of videos (n, frames, C, H, W): the mean over frames, beside it how much pooled features move from a frame to the next."""
        n, n_frames = videos.shape[:2]
        of_frames = self(videos.flatten(0, 1)).map(lambda x: x.unflatten(0, (n, n_frames)))
        moves = of_frames.pooled.diff(dim=1).abs().mean(1) if n_frames > 1 else torch.zeros_like(of_frames.pooled[:, 0])
        mean = of_frames.map(lambda x: x.mean(1))
        return replace(mean, pooled=torch.cat([mean.pooled, moves], 1))

    def _features(self, batch: Tensor) -> Features:
        batch = batch.to(self._device, torch.float32).expand(-1, self._in_channels, -1, -1)
        return self._forward(batch).map(lambda x: x.float().cpu())

    def requested(self, conditions: Sequence[Condition] | None) -> Tensor | None:
        if not conditions:
            return None
        if not isinstance(conditions[0], str):
            return torch.tensor(conditions)
        if self._read is None:
            return None
        prompts = list(map(str, conditions))
        place = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        distinct, size = list(place), self._batch_size
        with torch.inference_mode():
            read = torch.cat([self._read(distinct[i : i + size]).float().cpu() for i in range(0, len(distinct), size)])
        return read[[place[prompt] for prompt in prompts]]


def _network_fingerprint(name: str, network: nn.Module, settings: Any = None) -> str:
    return fingerprint([name, tensor_fingerprint(sorted(network.state_dict().items())), settings])


def _embedded(argument: str, image_shape: Shape, device: str) -> Extractor:
    """The shipped digit classifier: 128 features before the last layer, ten logits. Digits with a border of 2 pixels lose it."""
    if argument or tuple(image_shape) not in ((1, 28, 28), (1, 32, 32)):
        raise InputError(
            f"extractor embedded{':' + argument if argument else ''}: it serves digits of shape (1, 28, 28) or (1, 32, 32) and takes no file, here images "
            f"are {tuple(image_shape)}; choose another: {CHOICES}"
        )
    try:
        network = DigitClassifier.from_pretrained(CLASSIFIER, torch_dtype=torch.float32, local_files_only=True)
    except OSError as error:
        raise InputError(f"{CLASSIFIER}: the shipped classifier cannot be read; install sedaq again") from error
    mark = _network_fingerprint("embedded", network)
    # half the time: normalization folded into the convolutions, and the layout that they are fastest in
    network.trunk = _folded(network.trunk.eval())
    network = network.to(device, memory_format=torch.channels_last).eval()

    def forward(images: Tensor) -> Features:
        pooled, logits = network(images if images.shape[-1] == 28 else images[..., 2:-2, 2:-2])
        return Features(pooled, None, logits)

    return NetworkExtractor("embedded", mark, forward, in_channels=1, batch_size=64, device=device)


def _folded(layers: nn.Sequential) -> nn.Sequential:
    """The same function with every batch normalization folded into the convolution before it."""
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and folded and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded)


def _inception_path(argument: str) -> Path:
    path = Path(argument or os.environ.get("SEDAQ_INCEPTION") or cache_folder() / INCEPTION_FILE).expanduser()
    path = path / INCEPTION_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"{path}: no Inception-v3 weights there; put {INCEPTION_FILE} (published with pytorch-fid) there, name its place with "
            f"inception:FILE or the variable SEDAQ_INCEPTION, or choose another extractor: {CHOICES}"
        )
    return path


def _inception(argument: str, image_shape: Shape, device: str) -> Extractor:
    """The FID paper's Inception-v3 from a local file: 2048 pooled and 2023 spatial features, 1008 logits."""
    path = _inception_path(argument)
    sha256 = file_sha256(path)
    if sha256 != INCEPTION_SHA256:
        raise InputError(f"{path}: sha256 is {sha256} where {INCEPTION_SHA256} is expected; get {INCEPTION_FILE} again")
    with torch.device("meta"):
        network = InceptionV3()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in network.state_dict().keys() - state.keys():  # files written before torch 0.4.1 have no such counters
            if name.endswith("num_batches_tracked"):
                state[name] = torch.zeros((), dtype=torch.long)
        network.load_state_dict(state, assign=True)
    except (RuntimeError, UnpicklingError, EOFError, AttributeError) as error:
        raise InputError(f"{path}: not the state dict of that Inception-v3; get {INCEPTION_FILE} again") from error
    network = network.float().to(device).eval()

    def forward(images: Tensor) -> Features:
        return Features(*network(images))

    return NetworkExtractor("inception", fingerprint(["inception", sha256]), forward, in_channels=3, batch_size=32, device=device)


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Side in pixels, mean and deviation from preprocessor_config.json; transformers' own classes for it want torchvision."""
    path = folder / "preprocessor_config.json"
    try:
        config = parsed(path.read_bytes(), str(path), "copy the model's whole folder")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the model's whole folder") from error
    size = config.get("crop_size") or config.get("size") or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    return {"size": int(size), "mean": config.get("image_mean") or [0.5] * 3, "std": config.get("image_std") or [0.5] * 3}


def _transformers_network(folder: Path) -> nn.Module:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise InputError("extractor transformers: that package is missing; install the extra sedaq[transformers]") from error
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; transformers:FOLDER wants a local folder with a vision model")
    try:
        network = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: transformers cannot load it ({str(error).splitlines()[0]}); give a vision model's folder") from error
    loaded: nn.Module = network.float().eval()
    return loaded


def _reader(folder: Path, network: Any, device: str) -> Callable[[list[str]], Tensor]:
    """Prompts → embeddings by the text half of a CLIP; the tokenizer is looked for when there are prompts."""

    def read(prompts: list[str]) -> Tensor:
        from transformers import AutoTokenizer

        if not any((folder / name).exists() for name in TOKENIZER_FILES):  # transformers would make an empty one
            raise InputError(f"{folder}: has a text model and no tokenizer ({' or '.join(TOKENIZER_FILES)}); copy the model's whole folder")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        longest = network.config.text_config.max_position_embeddings
        tokens = tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        embeddings: Tensor = network.get_text_features(**tokens).pooler_output
        return embeddings

    return read


def _transformers(argument: str, image_shape: Shape, device: str) -> Extractor:
    """Any vision model of transformers: its pooler output, or else its first token; of a CLIP, the vision half's, and embeddings of images and
    prompts.

    Images are resized straight to the model's side, bicubic with antialiasing; the models' own recipe resizes the shorter side further
    and crops, which would cut the border off generated images.
    """
    folder = Path(argument).expanduser()
    if not argument:
        raise InputError("extractor transformers: no folder given; write transformers:FOLDER")
    network = _transformers_network(folder).to(device)
    vision, projection = getattr(network, "vision_model", network), getattr(network, "visual_projection", None)
    settings = _preprocessing(folder)
    mean, std = (torch.tensor(settings[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))

    def forward(images: Tensor) -> Features:
        side = (settings["size"], settings["size"])
        x = F.interpolate(images, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        output = vision(pixel_values=(x - mean) / std)
        pooled = getattr(output, "pooler_output", None)
        pooled = output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return Features(pooled, embeddings=None if projection is None else projection(pooled))

    mark = _network_fingerprint("transformers", network, settings)
    read = None if projection is None else _reader(folder, network, device)
    return NetworkExtractor("transformers", mark, forward, in_channels=3, batch_size=32, device=device, read=read)


EXTRACTORS: dict[str, Callable[[str, Shape, str], Extractor]] = {
    "embedded": _embedded,
    "inception": _inception,
    "transformers": _transformers,
}


def load_extractor(name: str, *, image_shape: tuple[int, ...], device: str = "cpu") -> Extractor:
    """The extractor called `name`, which is NAME or NAME:ARGUMENT of the table EXTRACTORS.

    Args:
        image_shape: (C, H, W) of the images that it will be given.

    Raises:
        InputError: unknown name, missing or wrong file, or a shape that the extractor does not serve; the message lists the choices.
    """
    kind, _, argument = name.partition(":")
    if kind not in EXTRACTORS:
        raise InputError(f"extractor {name!r} is unknown; choose one of: {CHOICES}")
    channels, height, width = image_shape
    return EXTRACTORS[kind](argument, (channels, height, width), device)
