"""A tiny subject in a file, a run of it that was probed, fitted and searched, and a way to call the command line in process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sedaq.cli.main import main

SUBJECT = """
import torch
from sedaq import Subject
from sedaq.models.noise import image_noise


class Tiny(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(28, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 28)])

    def forward(self, x):
        for block in self.blocks[:-1]:
            x = block(x).tanh()
        return self.blocks[-1](x)


def subject(width, extractor, name):
    torch.manual_seed(width)
    denoiser = Tiny(width)

    def sample(*, seed, start, n_images, steps=None, **settings):
        x = image_noise(seed, start, n_images, (1, 28, 28))
        for _ in range(steps or 2):
            x = x + 3 * denoiser(x)
        return x.sigmoid()

    return Subject(denoiser, sample=sample, conditions=list(range(10)), name=name, extractor=extractor)


def make():
    return subject(32, "embedded", "tiny")


def wider():
    return subject(36, "embedded", "wider")


def without_extractor():
    return subject(32, None, "blind")
"""


@dataclass(frozen=True)
class Made:
    """Paths of what the session's commands wrote."""

    file: Path
    run: Path
    plan: Path

    @property
    def subject(self) -> str:
        return f"{self.file}:make"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    made = Made(folder / "tiny.py", folder / "run", folder / "plan.json")
    made.file.write_text(SUBJECT)
    sampling = ["--configs", "14", "--images", "16", "--steps", "2"]
    assert main(["probe", made.subject, "--run", str(made.run), *sampling]) == 0
    assert main(["fit", "--run", str(made.run)]) == 0
    assert main(["search", "--run", str(made.run), "--bits", "3", "--out", str(made.plan)]) == 0
    return made


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call with wrong input; returns the one line on stderr."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        lines = [line for line in err.splitlines() if "━" not in line]  # bars of work that was done before
        assert len(lines) == 1, err
        assert lines[0].startswith("sedaq") and "Traceback" not in err
        return lines[0]

    return call
