"""What tests of several floors share: a tiny pipeline, and Triton's interpreter."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("TRITON_INTERPRET", "1")  # runs GPU kernels on the CPU; to be asked for before anything imports triton, as torch does
if (
    "SEDAQ_CACHE" not in os.environ
):  # what a user, or another state of the code, has kept is not to be read; workers of pytest-xdist share it
    os.environ["SEDAQ_CACHE"] = tempfile.mkdtemp(prefix="sedaq-tests-")
    atexit.register(shutil.rmtree, os.environ["SEDAQ_CACHE"], ignore_errors=True)

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def no_choice_of_kernels_is_remembered():
    """Tests put other kernels and costs in the place of this machine's."""
    from sedaq.kernels import dispatch

    dispatch._choices.clear()
    yield
    dispatch._choices.clear()


@pytest.fixture
def nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if sedaq came without a prior, and without the corpus that taught it."""
    from sedaq.sensitivity.prior import learn, use

    monkeypatch.setattr(use, "SHIPPED_FILE", "none.json")
    monkeypatch.setattr(learn, "SHIPPED_CORPUS", "none.parquet")


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional U-Net on colour images of 8×8."""
    from diffusers import DDIMPipeline, DDIMScheduler

    from .builders import unet

    folder = tmp_path_factory.mktemp("pipelines") / "tiny-ddim"
    torch.manual_seed(0)
    DDIMPipeline(unet(3, (8, 8)), DDIMScheduler(num_train_timesteps=100)).save_pretrained(folder)
    (folder / "README.md").write_text("kept\n")
    return folder
