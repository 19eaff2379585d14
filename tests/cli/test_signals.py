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


@pytest.mark.parametrize(("code", "closes"), [(0, True), (1, False)])
def test_only_a_reader_of_our_own_may_leave_quietly(code: int, closes: bool) -> None:
    """`| head` is no error; a pipe that breaks elsewhere, such as one that a sampler writes to, is."""
    program = (
        "import sys\nfrom sedaq.cli import main as cli\n"
        "def broken(*_, **__):\n"
        "    sys.stdin.readline()\n"
        f"    {'print(9, flush=True)' if closes else 'raise BrokenPipeError(32, chr(32))'}\n"
        "cli.cli = broken\nsys.exit(cli.main(['inspect']))"
    )
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        if closes:
            process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.flush()
        said = process.stderr.read()
        assert process.wait(timeout=60) == code
    assert ("failed with BrokenPipeError" in said) != closes
