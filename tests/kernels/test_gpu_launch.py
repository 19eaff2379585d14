"""Around the GPU kernels: tiles, the dispatcher, machine code for sm_80 and sm_90, and the benchmark in small."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from sedaq.errors import InputError
from sedaq.kernels import dispatch, gpu, gpu_kernels, gpu_tiles
from sedaq.kernels.cost_model import random_matrix
from sedaq.kernels.dispatch import PRECISIONS
from sedaq.kernels.gpu_tiles import Tiles
from sedaq.kernels.quantized_matrix import Geometry
from sedaq.kernels.reference import product_by_dequantizing

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.usefixtures("bfloat16_in_the_interpreter", "own_tiles")


def test_parts_grow_only_while_processors_are_idle():
    tile = Tiles(16, 64, 128, 4, 3)
    assert gpu_tiles.parts(tile, 16, 64, 128 * 64, 132) == 16  # 4 steps each
    assert gpu_tiles.parts(tile, 16, 64 * 30, 128 * 64, 132) == 8
    assert gpu_tiles.parts(tile, 16, 64 * 200, 128 * 64, 132) == 1
    assert gpu_tiles.parts(tile, 16, 64, 128 * 7, 132) == 1
    assert gpu_tiles.parts(Tiles(128, 128, 64, 8, 3), 1024, 1152, 1152, 132) == 1


# -- tiles and dispatch ------------------------------------------------------------------------------------------------------------------


def test_measured_tiles_are_read_and_a_damaged_file_is_no_failure(caplog):
    device, tile = torch.device("cpu"), Tiles(32, 32, 32, 4, 2)
    assert gpu_tiles.tiles(16, 100, 8, device) == gpu_tiles.DEFAULTS[16][2]
    gpu_tiles.keep({"16 2": tile}, device)
    assert gpu_tiles.tiles(16, 100, 4, device) == dataclasses.replace(tile, columns=16)
    assert gpu_tiles.tiles(16, 100, 8, device) == tile and gpu_tiles.tiles(32, 100, 8, device) == gpu_tiles.DEFAULTS[32][2]
    gpu_tiles.path(device).write_text("{}")
    gpu_tiles._measured.cache_clear()
    assert gpu_tiles.tiles(16, 100, 8, device) == gpu_tiles.DEFAULTS[16][2] and "the default tiles are used" in caplog.text


def test_no_tile_is_wider_than_the_tables_or_narrower_than_a_piece():
    for tile in (tile for tiles in gpu_tiles.DEFAULTS.values() for tile in tiles):
        assert 16 <= tile.columns <= gpu_tiles.MAX_COLUMNS and gpu_tiles.MAX_COLUMNS % tile.columns == 0


@pytest.mark.parametrize(("most", "expected"), [(3, [3]), (1, [3, 2, 1])])
def test_a_kernel_that_needs_too_much_shared_memory_looks_less_far_ahead(most, expected):
    tried = []

    def launch(*arguments, num_stages):
        tried.append(num_stages)
        if num_stages > most:
            raise gpu_kernels.OutOfResources(200, 100, "shared memory")

    gpu._launch({(1,): launch}, (1,), "x", num_stages=3)
    assert tried == expected
    most = 0
    with pytest.raises(gpu_kernels.OutOfResources):
        gpu._launch({(1,): launch}, (1,), "x", num_stages=2)


def test_the_dispatcher_on_a_device_that_has_them(monkeypatch):
    """A device that is neither a CPU nor there: only the choice is made."""
    monkeypatch.setattr(gpu, "available", lambda device: tuple(gpu.KERNELS))
    matrix = random_matrix(8, 8, 1, 16, 300)
    chosen = {
        (dtype, precision): dispatch.choose(torch.empty(3, 8, dtype=dtype, device="meta"), 3, matrix, precision)
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
        for precision in PRECISIONS
    }
    for precision in PRECISIONS:
        assert chosen[torch.float32, precision] == ("bf16-gpu" if precision == "bf16" else "f32-gpu")
        assert chosen[torch.float16, precision] == chosen[torch.bfloat16, precision] == "bf16-gpu"
        assert chosen[torch.float64, precision] == "dequantize"
    x = torch.empty(3, 8, device="meta", dtype=torch.bfloat16)
    for name in (*dispatch.IN_TORCH, *gpu.KERNELS):
        monkeypatch.setenv("SEDAQ_KERNEL", name)
        assert dispatch.choose(x, 3, matrix) == name
    monkeypatch.setenv("SEDAQ_KERNEL", "f32-portable")
    with pytest.raises(InputError, match="names no kernel of this machine"):
        dispatch.choose(x, 3, matrix)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET=0")
def test_products_through_the_dispatcher(monkeypatch):
    monkeypatch.setattr(dispatch, "_compiled", lambda device: tuple(gpu.KERNELS))
    matrix, x = dataclasses.replace(random_matrix(20, 45, 2, 16, 9), taps=9), torch.randn(2, 6, 7, 5)
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1))
    expected = product_by_dequantizing(x, matrix, None, geometry)
    for name in gpu.KERNELS:
        monkeypatch.setenv("SEDAQ_KERNEL", name)
        for precision in ("bf16", "a8") if name == "f32-gpu" else ("bf16",):
            found = dispatch.product(x, matrix, None, geometry, precision)
            assert found.dtype == x.dtype and (found - expected).norm() <= PRECISIONS[precision] * expected.norm()


def test_without_triton_torch_serves_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    gpu._has_triton.cache_clear()
    try:
        assert gpu.available(torch.device("cpu")) == () and not caplog.records
        assert gpu.available(torch.device("cuda")) == gpu.available(torch.device("cuda")) == ()
        assert [record.message for record in caplog.records] == [
            "triton is not installed, so products on the GPU run in torch and take longer; install sedaq[triton]"
        ]
        assert dispatch.choose(torch.empty(3, 8, device="meta"), 3, random_matrix(8, 8, 1, 16, 4)) == "dequantize"
        with pytest.raises(RuntimeError, match="kernel f32-gpu needs triton"):
            gpu.product("f32-gpu", torch.randn(3, 8), random_matrix(8, 8, 1, 16, 4))
    finally:
        gpu._has_triton.cache_clear()


# -- other interpreters ------------------------------------------------------------------------------------------------------------------


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTHONSAFEPATH")}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_benchmark_in_small(tmp_path):
    found = run("benchmarks/gpu_kernels.py", "--smoke", TRITON_INTERPRET="1", SEDAQ_CACHE=str(tmp_path), TMPDIR=str(tmp_path))
    assert found.returncode == 0, found.stderr
    (kept,) = tmp_path.glob("*/gpu_kernels.json")
    rows = json.loads(kept.read_text())["rows"]
    assert {row["kernel"] for row in rows} == {*gpu.KERNELS, "dequantize", "tiles"}
    assert {row["format"] for row in rows if row["kernel"] != "tiles"} == {"2x8g8", "1x8g4"}
    assert set(gpu_tiles._measured("cpu")) == {"dequantize", *(f"{bits} {place}" for bits in (16, 32) for place in range(4))}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_without_triton_and_accelerator_all_is_imported_and_the_benchmark_refuses():
    code = "import sys; sys.modules['triton'] = None; sys.path[0] = 'benchmarks'; import gpu_kernels; sys.exit(gpu_kernels.main())"
    found = run("-c", code)
    assert found.returncode == 2 and found.stderr == "no accelerator: this measures on a CUDA device, with triton installed\n"


@pytest.mark.skipif(sys.platform != "linux", reason="triton's assembler is for Linux")
def test_all_kernels_compile_for_sm_80_and_sm_90_without_spilling(tmp_path):
    found = run("tests/kernels/gpu_resources.py", TRITON_CACHE_DIR=str(tmp_path))
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert {row["sm"] for row in rows} == {80, 90} and {row["kernel"] for row in rows} == {"product", "finish", "dequantize"}
    for row in rows:
        assert row["REG"] <= 255 and row["STACK"] == row["LOCAL"] == 0, row
        assert row["shared"] <= {80: 163, 90: 227}[row["sm"]] * 1024, row  # KiB that one block may have
