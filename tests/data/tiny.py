import os
import signal

import torch

from sedaq import InputError, Subject
from sedaq.models.noise import image_noise


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(28, 24), torch.nn.Linear(24, 32), torch.nn.Linear(32, 28)])

    def forward(self, x):
        for block in self.blocks[:-1]:
            x = block(x).tanh()
        return self.blocks[-1](x)


def make():
    torch.manual_seed(0)
    denoiser = Tiny()

    def sample(*, seed, start, n_images, steps=None, **settings):
        if "guidance" in settings:
            raise InputError("guidance: tiny has no null class")
        fatal = os.environ.get("SAMPLING_IS_FATAL_ONCE")
        if fatal and n_images > 1:
            try:
                os.unlink(fatal)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileNotFoundError:  # it was fatal before
                pass
        x = image_noise(seed, start, n_images, (1, 28, 28))
        for _ in range(steps or 2):
            x = x + 3 * denoiser(x)
        return x.sigmoid()

    return Subject(denoiser, sample=sample, conditions=list(range(10)), name="tiny", extractor="embedded")
