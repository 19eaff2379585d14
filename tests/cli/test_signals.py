"""The command is asked to end: one line, the right exit code, and no process left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SLOW = """
import time
import torch
from sedaq import Subject
from sedaq.models.noise import image_noise

def make():
    net = torch.nn.Sequential(torch.nn.Linear(784, 8), torch.nn.Linear(8, 784))

    def sample(*, seed, start, n_images, steps=None):
        if n_images > 2:
            time.sleep(30)
        return net(image_noise(seed, start, n_images, (784,))).sigmoid().reshape(n_images, 1, 28, 28)

    return Subject(net, sample=sample, name="slow", extractor="embedded")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_asked_to_end(number: signal.Signals, code: int, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    words = [sys.executable, "-m", "sedaq", "probe", f"{tmp_path / 'slow.py'}:make", "--run", str(tmp_path / "run"), "--images", "16"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "run.json").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert said.strip().splitlines()[-1].endswith("run the same command again to go on") and "Traceback" not in said
    assert not psutil.wait_procs(children, timeout=5)[1]


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_ctrl_c_while_it_is_imported(seconds: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sedaq", "inspect", "mnist-dit"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGINT, 130) and "Traceback" not in said
