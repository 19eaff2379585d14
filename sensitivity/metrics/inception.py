"""The Inception-v3 (Szegedy et al. 2015) whose features define the FID (Heusel et al. 2017), in PyTorch.

It is TensorFlow's network of 2015-12-05, which differs from later ones: average pools leave the padding out of their means, the last
block pools with max, and there are 1008 classes. Module names are those of the published state dict
pt_inception-2015-12-05-6726825d.pth, which therefore loads strictly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_CLASSES = 1008
SIZE = 299  # pixels
SPATIAL_CHANNELS = 7


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


# A unit is (name, out_channels, (kernel height, kernel width)). A path applies its stages in turn; a stage of two units applies both to
# the same input and concatenates. The outputs of all paths are concatenated in order.
Unit = tuple[str, int, tuple[int, int]]
Path = list[tuple[Unit, ...]]


def _chain(*units: Unit) -> Path:
    return [(unit,) for unit in units]


def _paths_35(pool_channels: int) -> list[Path]:
    return [
        _chain(("branch1x1", 64, (1, 1))),
        _chain(("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
        _chain(("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))),
        _chain(("branch_pool", pool_channels, (1, 1))),
    ]


def _paths_to_17() -> list[Path]:
    return [
        _chain(("branch3x3", 384, (3, 3))),
        _chain(("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))),
    ]


def _paths_17(inner: int) -> list[Path]:
    return [
        _chain(("branch1x1", 192, (1, 1))),
        _chain(("branch7x7_1", inner, (1, 1)), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1))),
        _chain(
            ("branch7x7dbl_1", inner, (1, 1)),
            ("branch7x7dbl_2", inner, (7, 1)),
            ("branch7x7dbl_3", inner, (1, 7)),
            ("branch7x7dbl_4", inner, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ),
        _chain(("branch_pool", 192, (1, 1))),
    ]


def _paths_to_8() -> list[Path]:
    return [
        _chain(("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))),
        _chain(
            ("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, (3, 3))
        ),
    ]


def _paths_8() -> list[Path]:
    return [
        _chain(("branch1x1", 320, (1, 1))),
        [*_chain(("branch3x3_1", 384, (1, 1))), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1)))],
        [
            *_chain(("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))),
            (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
        ],
        _chain(("branch_pool", 192, (1, 1))),
    ]


class Mixed(nn.Module):
    """Parallel paths of convolutions and a pool, concatenated.

    Args:
        pool: "average" or "max" feeds the path `branch_pool` at full resolution; "halve" makes the last unit of every path and a max
            pool without convolution work at stride 2 without padding.
    """

    def __init__(self, in_channels: int, paths: list[Path], pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.stages = [[[name for name, _, _ in stage] for stage in path] for path in paths]
        self.out_channels = in_channels if pool == "halve" else 0
        for path in paths:
            channels = in_channels
            for stage in path:
                last = pool == "halve" and stage is path[-1]
                for name, out_channels, kernel in stage:
                    self.add_module(name, ConvUnit(channels, out_channels, kernel, stride=2 if last else 1, padded=not last))
                channels = sum(out_channels for _, out_channels, _ in stage)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for path in self.stages:
            y = self._pooled(x) if path[0] == ["branch_pool"] else x
            for stage in path:
                y = torch.cat([self.get_submodule(name)(y) for name in stage], dim=1)
            outputs.append(y)
        if self.pool == "halve":
            outputs.append(F.max_pool2d(x, 3, stride=2))
        return torch.cat(outputs, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "max":
            return F.max_pool2d(x, 3, stride=1, padding=1)
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionV3(nn.Module):
    """forward: images (n, 3, H, W) in [0, 1] → pooled (n, 2048), spatial (n, 2023), logits (n, 1008).

    Images are resized bilinearly to 299² without antialiasing, with pixel centres at halves as pytorch-fid does (TensorFlow 1 put them
    at whole numbers), and scaled to [−1, 1]. Spatial features are the first 7 channels of TensorFlow's mixed_6, 17×17 (sFID, Nash et
    al. 2021); counted from mixed = Mixed_5b, that is Mixed_6d. Logits leave the bias out, as the inception score's first
    implementation (Salimans et al. 2016) did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, (3, 3), stride=2, padded=False)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, (3, 3), padded=False)
        self.Mixed_5b = Mixed(192, _paths_35(32), "average")
        self.Mixed_5c = Mixed(256, _paths_35(64), "average")
        self.Mixed_5d = Mixed(288, _paths_35(64), "average")
        self.Mixed_6a = Mixed(288, _paths_to_17(), "halve")
        self.Mixed_6b = Mixed(768, _paths_17(128), "average")
        self.Mixed_6c = Mixed(768, _paths_17(160), "average")
        self.Mixed_6d = Mixed(768, _paths_17(160), "average")
        self.Mixed_6e = Mixed(768, _paths_17(192), "average")
        self.Mixed_7a = Mixed(768, _paths_to_8(), "halve")
        self.Mixed_7b = Mixed(1280, _paths_8(), "average")
        self.Mixed_7c = Mixed(2048, _paths_8(), "max")
        self.fc = nn.Linear(2048, N_CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False) * 2 - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = x[:, :SPATIAL_CHANNELS].flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pooled = x.mean(dim=(2, 3))
        return pooled, spatial, F.linear(pooled, self.fc.weight)
