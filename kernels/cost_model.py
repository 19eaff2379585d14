"""What a product costs with each kernel: a model fitted to a few seconds of measurement, once for each machine and number of threads.

Of kernels that decode,

    seconds = a + b T·in + c out·G·M + d out·in + e ⌈T⌉·out·in + f T·out

with T tokens, ⌈T⌉ in whole tiles above 8: calling, gathering activations, looking codewords up, writing them into panels, multiplying,
finishing. Of kernels that look up in tables of K entries, made of K' codewords,

    seconds = a + b T·in + c ⌈T⌉·out·G·M + d ⌈T⌉·in·M·K' + e ⌈T⌉·G·M·K + f T·out

where the third term is looking up, the fourth multiplying codewords, the fifth writing entries. Up to 8 tokens, where some kernels go another
way, all factors are others, and those of tables are of 1, G·M·K, out·G·M, T·out·G·M, in·M·K' and T·out. Byte tables in registers have factors of 1,
T·in·M·K', out·G·M, T·out·G·M, T·in and T·out. Rounding activations to 8 bits costs a + b T·in. Factors are non-negative and fitted to relative errors.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from ..errors import InputError
from ..storage import cache_folder, read_json, write_json
from . import native
from .quantized_matrix import QuantizedMatrix
from .reference import product_by_dequantizing, rounded
from .timing import clock

log = logging.getLogger("sedaq")

Factors = Mapping[str, Mapping[str, Sequence[float]]]  # by kernel and a name of SIZES: six factors
FEW = 8  # as csrc/few_tokens.h has it, where one or two tokens go a way of their own
SIZES = {"one": 2, "few": FEW, "many": math.inf}  # up to so many tokens
_SHAPES = ((48, 64), (256, 256), (512, 2048), (4608, 1152))
_FORMATS = ((1, 256, 8, ""), (2, 256, 8, "h"), (1, 64, 3, ""), (1, 16, 2, ""), (4, 128, 12, ""))  # M, K, g, structure
_TOKENS = (1, 2, 3, 8, 16, 96, 384)
_ROUNDS = 3
SHORT = 0.6  # of a lookup in tables that lie in the first-level cache, against one in the second (measured with AVX2)
ROUNDING = "rounding"  # of activations to 8 bits: in the model like a kernel


def terms(kernel: str, tokens: int, matrix: QuantizedMatrix) -> np.ndarray:
    """What the factors multiply."""
    n_out, n_groups, n_codebooks = matrix.codes.shape
    n_entries = matrix.codebooks.shape[1]
    codes, tile = n_out * n_groups * n_codebooks, native.TILES.get(kernel, 16)
    tiled = tokens if tokens <= FEW else -(-tokens // tile) * tile
    gathering, calling, finishing = tokens * matrix.n_in, 1, tokens * n_out
    n_words = {"": n_entries, "m": n_entries // 2, "h": 2 * math.isqrt(n_entries)}[matrix.structure]
    if kernel == ROUNDING:
        return np.array([calling, gathering, 0, 0, 0, 0], float)
    if kernel.startswith("shuffle8"):  # tables of tokens, transposing codes, looking up
        lookups = tokens * codes * (1 if n_entries > 16 else 0.5)  # two short codes share what a long one's halves take
        return np.array([calling, tokens * matrix.n_in * n_codebooks * n_words, codes, lookups, gathering, finishing], float)
    if kernel not in native.TILES:
        return np.array([calling, gathering, codes, n_out * matrix.n_in, tiled * n_out * matrix.n_in, finishing], float)
    halves = native.looks_halves_up(kernel, matrix)
    of_words, of_entries = matrix.n_in * n_codebooks * n_words, n_groups * n_codebooks * (n_words if halves else n_entries)
    if tokens <= FEW:
        return np.array([calling, of_entries, codes, tokens * codes, of_words, finishing], float)
    lookups = tiled * codes * (2 * SHORT if halves else SHORT if n_entries <= 32 else 1)
    return np.array([calling, gathering, lookups, tiled * of_words, tiled * of_entries, finishing], float)


def candidates() -> tuple[str, ...]:
    """Kernels that may be chosen because they are cheap: "dequantize", and those of the widest instructions in every family."""
    families = {name.partition("-")[0]: name for name in native.available()}
    return ("dequantize", *families.values())


def _measured() -> tuple[str, ...]:
    return (*candidates(), ROUNDING)


def cheapest(names: Sequence[str], tokens: int, matrix: QuantizedMatrix, precision: str = "exact") -> str:
    """The name among those that are candidates of the cost model that the matrix carries, or of this machine's."""
    if len(names) == 1:
        return names[0]
    known = _factors_for(matrix)
    return min((name for name in names if name in known), key=lambda name: seconds(name, tokens, matrix, precision))


def seconds(name: str, tokens: int, matrix: QuantizedMatrix, precision: str = "exact") -> float:
    """What the model says of one product. Only shapes of the matrix are read, so that it may lie on the device "meta".

    In class "a8" activations are rounded for a kernel that does not do so itself. Raises InputError for a kernel that is not in the model.
    """
    known = _factors_for(matrix)
    if name not in known:
        raise InputError(f"what kernel {name!r} costs is not known; choose among {', '.join(known)}, or unset SEDAQ_KERNEL")
    steps = (name, ROUNDING) if precision == "a8" and native.KERNELS.get(name) != "a8" else (name,)
    return sum(float(terms(step, tokens, matrix) @ np.asarray(known[step][_size(tokens)])) for step in steps)


def _factors_for(matrix: QuantizedMatrix) -> Factors:
    """Those that came with the model; this machine's where the model was unpickled by a process that never adopted any."""
    return _adopted.get(matrix.cost_model) or factors()


def _size(tokens: int) -> str:
    return next(size for size, most in SIZES.items() if tokens <= most)


def factors() -> Factors:
    """The factors of this machine at torch's present number of threads; measured if that was never done."""
    return _factors(torch.get_num_threads())


@functools.cache
def _factors(threads: int) -> Factors:
    path = cache_folder() / f"kernels-{machine()}-{threads}.json"
    if path.exists():
        try:
            known = _checked(read_json(path, "kernel costs"))
            if set(known) == set(_measured()):
                return known
            raise InputError("is of another version")
        except InputError as error:
            log.warning("%s: %s; measuring anew", path, error)
    log.info("measuring sedaq's kernels on this machine, once; it takes some seconds")
    found = measure()
    try:
        write_json(path, "kernel costs", {"law": found})
    except InputError as error:  # a home that cannot be written to is no reason not to work
        log.warning("%s: the measurement is not kept", error)
    return found


_adopted: dict[str, Factors] = {}  # by digest


def to_store() -> dict[str, Any]:
    """This machine's cost model as it lies in a saved model, so that the same kernels are chosen again."""
    return {"threads": torch.get_num_threads(), "law": factors()}


def _checked(stored: Mapping[str, Any]) -> Factors:
    try:
        return {name: {size: [float(f) for f in of_kernel[size]] for size in SIZES} for name, of_kernel in stored["law"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError("is damaged, or of another version") from error


def adopt(stored: Mapping[str, Any]) -> str:
    """The name by which a stored cost model is known to QuantizedMatrix.cost_model; empty, which means this machine's, where other kernels are to be had.

    Raises InputError where it is no cost model.
    """
    try:
        found = _checked(stored)
    except InputError as error:
        raise InputError(f"quantization_config: field 'kernel_costs' {error}; apply the plan again, or take the field out") from error
    if set(found) != set(_measured()):
        log.info("the model was saved where other kernels are to be had (%s), so they are chosen anew", ", ".join(sorted(found)))
        return ""
    digest = hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:12]
    _adopted[digest] = found
    return digest


def machine() -> str:
    """What the cost model depends on besides the number of threads: processor, torch, and the kernels themselves."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        processor = platform.processor()
    digest = hashlib.sha256(f"{processor} {platform.machine()} {torch.__version__} {native.fingerprint()} {native.available()}".encode())
    return digest.hexdigest()[:12]


def random_matrix(
    n_out: int, n_in: int, n_codebooks: int, n_entries: int, group_size: int, structure: str = "", seed: int = 0
) -> QuantizedMatrix:
    """Codes at random and codewords that make products of unit size."""
    rng = torch.Generator().manual_seed(seed)
    n_groups = -(-n_in // group_size)
    codes = torch.randint(n_entries, (n_out, n_groups, n_codebooks), generator=rng).to(torch.uint8 if n_entries <= 256 else torch.int16)
    books = torch.randn(n_codebooks, n_entries, group_size, generator=rng)
    if structure == "m":
        books = torch.cat([books[:, ::2], -books[:, ::2]], 1)
    elif structure == "h":
        n = math.isqrt(n_entries)
        books = (0.9 * books[:, :n].unsqueeze(2) + 0.4 * books[:, n : 2 * n].unsqueeze(1)).flatten(1, 2)
    return QuantizedMatrix(codes, books / (n_codebooks * n_in) ** 0.5, torch.ones(n_out), n_in, structure=structure)


@torch.inference_mode()
def measure() -> dict[str, dict[str, list[float]]]:
    """Fit the cost model of every kernel that is here to the shortest of a few rounds over shapes, formats and numbers of tokens."""
    names = _measured()
    cases = [(name, size) for name in names for size in SIZES]
    rows: dict[tuple[str, str], list[np.ndarray]] = {case: [] for case in cases}
    taken: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for n_out, n_in in _SHAPES:
        for m, k, g, structure in _FORMATS:
            matrix = random_matrix(n_out, n_in, m, k, g, structure)
            served = [name for name in names if name not in native.KERNELS or native.serves(name, matrix)]
            for tokens in _TOKENS:
                x = torch.randn(tokens, n_in)
                best = dict.fromkeys(served, float("inf"))
                for _ in range(_ROUNDS):
                    for name in served:
                        start = clock()
                        if name == "dequantize":
                            product_by_dequantizing(x, matrix)
                        elif name == ROUNDING:
                            rounded(x)
                        else:
                            native.product(name, x, matrix)
                        best[name] = min(best[name], clock() - start)
                for name in served:
                    rows[name, _size(tokens)].append(terms(name, tokens, matrix))
                    taken[name, _size(tokens)].append(best[name])
    found = {case: _fit(np.array(rows[case]), np.array(taken[case])) for case in cases}
    return {name: {size: found[name, size] for size in SIZES} for name in names}


def _fit(rows: np.ndarray, seconds: np.ndarray) -> list[float]:
    return [float(factor) for factor in nnls(rows / seconds[:, None], np.ones(len(seconds)))[0]]
