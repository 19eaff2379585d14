"""What the GPU kernels take of a device, found without one:  python tests/kernels/gpu_resources.py [80 90]      → JSON lines

The launcher's own calls are compiled to machine code instead of being launched; cuobjdump, which comes with triton, reads registers and
memory from it. LOCAL is what spilled registers go to.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget

from sedaq.kernels import gpu, gpu_tiles
from sedaq.kernels.cost_model import random_matrix
from sedaq.kernels.quantized_matrix import Geometry

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TOKENS = {"few": 16, "some": 64, "more": 256, "many": 4096}  # each takes other tiles
FORMATS = {"2x8g8": (2, 256, 8), "4x8g8": (4, 256, 8), "1x9g9": (1, 512, 9), "3x5g7": (3, 32, 7)}


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every tile at 2x8g8, every format at the tile for many tokens, a convolution, and de-quantizing."""
    convolution = Geometry((3, 3), (1, 1), (1, 1), (1, 1))
    by_tap = torch.arange(320 * 9).view(320, 9).T.reshape(-1)
    for name, dtype in (("bf16-gpu", torch.bfloat16), ("f32-gpu", torch.float32)):
        cases = [("2x8g8", tokens) for tokens in TOKENS] + [(text, "many") for text in FORMATS if text != "2x8g8"]
        for text, tokens in cases:
            matrix, x = random_matrix(1152, 1152, *FORMATS[text]), torch.empty(TOKENS[tokens], 1152, dtype=dtype)
            yield f"{name} {text} {tokens} tokens", partial(gpu.product, name, x, matrix)
        matrix = replace(random_matrix(320, 320 * 9, *FORMATS["2x8g8"]), order=by_tap, taps=9)
        x = torch.empty(4, 32, 32, 320, dtype=dtype)
        yield f"{name} 2x8g8 3x3 convolution", partial(gpu.product, name, x, matrix, torch.ones(320), convolution)
    yield "dequantize 2x8g8", partial(gpu.dequantize, random_matrix(1152, 1152, *FORMATS["2x8g8"]), torch.bfloat16)


def resources(machine_code: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of local memory, as cuobjdump prints them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        text = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    assert found, text
    return found


def main() -> None:
    compiled: list[tuple[Any, Any]] = []
    gpu._launch = lambda kernel, grid, *arguments, **constants: compiled.append((kernel, kernel.warmup(*arguments, grid=grid, **constants)))
    gpu._processors = lambda device: 132
    gpu_tiles._measured = lambda device: {}
    for architecture in [int(text) for text in sys.argv[1:]] or [80, 90]:
        target = GPUTarget("cuda", architecture, 32)
        driver = SimpleNamespace(
            get_current_target=lambda t=target: t, get_current_device=lambda a=architecture: a, get_current_stream=lambda _: 0
        )
        triton.runtime.driver.set_active(driver)
        for label, call in calls():
            compiled.clear()
            call()
            for kernel, made in compiled:
                row = {
                    "sm": architecture,
                    "call": label,
                    "kernel": kernel.__name__,
                    **resources(made.asm["cubin"]),
                    "shared": made.metadata.shared,
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
