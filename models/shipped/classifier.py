"""The digit classifier whose penultimate features measure images of the shipped subjects."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class DigitClassifier(ModelMixin, ConfigMixin):
    """Four 3×3 convolutions, two poolings, one hidden layer of `n_features`.

    forward: images (n, 1, 28, 28) in [0, 1] → features (n, n_features), logits (n, 10).
    """

    @register_to_config
    def __init__(self, n_features: int = 128, width: int = 32) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 49, n_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(n_features, 10)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.trunk(images * 2 - 1)
        return features, self.head(features)
