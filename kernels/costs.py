"""What a product costs with each kernel: a law fitted to a few seconds of measurement, once for each machine and number of threads.

    seconds = a + b T·in + c out·G·M + d out·in + e ⌈T⌉·out·in + f T·out

with T tokens, ⌈T⌉ in whole tiles of 16 above 8: calling, gathering activations, looking codewords up, writing them into panels, multiplying,
finishing. Factors are non-negative, fitted to relative errors, and others for up to 8 tokens, where some kernels go another way.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from ..errors import InputError
from ..storage import read_json, write_json
from . import native
from .coded import CodedMatrix
from .reference import product_by_dequantizing

log = logging.getLogger("sedaq")

Law = Mapping[str, Mapping[str, Sequence[float]]]  # by kernel, "few" or "many" tokens: six factors
FEW = 8  # as csrc/few_tokens.h has it
_SHAPES = ((48, 64), (256, 256), (1152, 1152), (512, 2048))
_FORMATS = ((1, 256, 8), (2, 256, 8), (1, 64, 3), (4, 128, 12))  # M, K, g
_TOKENS = (1, 3, 8, 16, 96, 384)
_ROUNDS = 3


def terms(tokens: int, n_out: int, n_in: int, n_groups: int, n_codebooks: int) -> np.ndarray:
    """What the factors multiply."""
    tiles = tokens if tokens <= FEW else -(-tokens // 16) * 16
    return np.array([1.0, tokens * n_in, n_out * n_groups * n_codebooks, n_out * n_in, tiles * n_out * n_in, tokens * n_out])


def cheapest(names: Sequence[str], tokens: int, matrix: CodedMatrix) -> str:
    if len(names) == 1:
        return names[0]
    known = law()
    of_matrix = terms(tokens, matrix.n_out, matrix.n_in, matrix.codes.shape[1], matrix.codes.shape[2])
    return min(names, key=lambda name: float(of_matrix @ np.asarray(known[name][_many(tokens)])))


def _many(tokens: int) -> str:
    return "few" if tokens <= FEW else "many"


def law() -> Law:
    """The factors of this machine at torch's present number of threads; measured if that was never done."""
    return _law(torch.get_num_threads())


@functools.cache
def _law(threads: int) -> Law:
    path = cache_folder() / f"kernels-{machine()}-{threads}.json"
    if path.exists():
        known: Law = read_json(path, "kernel costs")["law"]
        return known
    log.info("measuring sedaq's kernels on this machine, once; it takes some seconds")
    found = measure()
    try:
        write_json(path, "kernel costs", {"law": found})
    except InputError as error:  # a home that cannot be written to is no reason not to work
        log.warning("%s: the measurement is not kept", error)
    return found


def cache_folder() -> Path:
    """Where machines' laws are kept: SEDAQ_CACHE, or the user's cache."""
    return Path(os.environ.get("SEDAQ_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sedaq")


def machine() -> str:
    """What the law depends on besides the number of threads: processor, torch, and the kernels themselves."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        processor = platform.processor()
    digest = hashlib.sha256(f"{processor} {platform.machine()} {torch.__version__} {native.fingerprint()} {native.available()}".encode())
    return digest.hexdigest()[:12]


def random_matrix(n_out: int, n_in: int, n_codebooks: int, n_entries: int, group_size: int, seed: int = 0) -> CodedMatrix:
    """Codes at random and codewords that make products of unit size."""
    rng = torch.Generator().manual_seed(seed)
    n_groups = -(-n_in // group_size)
    codes = torch.randint(n_entries, (n_out, n_groups, n_codebooks), generator=rng)
    codebooks = torch.randn(n_codebooks, n_entries, group_size, generator=rng) / (n_codebooks * n_in) ** 0.5
    return CodedMatrix(codes.to(torch.uint8 if n_entries <= 256 else torch.int16), codebooks, torch.ones(n_out), n_in)


@torch.inference_mode()
def measure() -> dict[str, dict[str, list[float]]]:
    """Fit the law of every kernel that is here to the shortest of a few rounds over shapes, formats and numbers of tokens."""
    names = ("dequantize", *native.available())
    rows: dict[str, list[np.ndarray]] = {"few": [], "many": []}
    seconds: dict[tuple[str, str], list[float]] = {(name, many): [] for name in names for many in rows}
    for n_out, n_in in _SHAPES:
        for m, k, g in _FORMATS:
            matrix = random_matrix(n_out, n_in, m, k, g)
            for tokens in _TOKENS:
                x = torch.randn(tokens, n_in)
                rows[_many(tokens)].append(terms(tokens, n_out, n_in, matrix.codes.shape[1], m))
                best = dict.fromkeys(names, float("inf"))
                for _ in range(_ROUNDS):
                    for name in names:
                        start = time.perf_counter()
                        if name == "dequantize":
                            product_by_dequantizing(x, matrix)
                        else:
                            native.product(name, x, matrix)
                        best[name] = min(best[name], time.perf_counter() - start)
                for name in names:
                    seconds[name, _many(tokens)].append(best[name])
    return {name: {many: _fit(np.array(rows[many]), np.array(seconds[name, many])) for many in rows} for name in names}


def _fit(rows: np.ndarray, seconds: np.ndarray) -> list[float]:
    return [float(factor) for factor in nnls(rows / seconds[:, None], np.ones(len(seconds)))[0]]
