"""The encoder's figures:  python benchmarks/encoder.py distortion | source | speed | fixed | bytes | menus

distortion  error on an i.i.d. Gaussian matrix of 2048×2048, about 2 bits full, too → results/distortion.json
source      28 Gaussian matrices of 1152×1152 that share codebooks fitted on 7     → results/gaussian_source.json
speed       the fixed layers at fast effort, compiled loops beside torch              → results/encoder_speed.json
fixed       the fixed layers at AQLM's format, its error and seconds beside ours      → results/encode.json
bytes       the fixed layers at AQLM's total bytes, format chosen by the menu          → results/encode_bytes.json
menus       measuring the menus of the shipped models and encoding all of them         → results/encode_menus.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from results import commit, keep, kept

import sedaq
from sedaq.aq.encoder import native
from sedaq.aq.encoder.beam import Beam
from sedaq.aq.encoder.encoder import EFFORTS, encode, fit_book
from sedaq.aq.encoder.objective import Objective
from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import RATES
from sedaq.aq.plans.menu_choice import measured_menus
from sedaq.aq.plans.store import EncodingStore
from sedaq.aq.profiling import bench
from sedaq.kernels.timing import clock
from sedaq.models.hessian import Hessian

N_MATRICES, N_FITTED, ENCODED = 28, 7, (0, 7)  # of the Gaussian source
FULL = ("3x8g16", "2x8g8", "4x8g16", "4x8g17q", "5x7g18mq")  # from ten minutes of a core to half an hour each; more bits take hours


def one_by_one(name: str, cases: Sequence[Any], measured: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each case. Those of the same commit that an earlier, stopped call left in build/ are not measured again."""
    folder, conditions = Path("build") / "encoder" / str(commit()), {"cases": [list(case) for case in cases]}
    rows = kept(name, conditions, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases[len(rows) :]:
        rows.append(measured(case))
        print(rows[-1], flush=True)
        keep(name, f"python benchmarks/encoder.py {name}", rows, folder, conditions=conditions)
    return rows


def distortion() -> list[dict[str, Any]]:
    cases = [*((text, "fast") for text in bench.DISTORTION_FORMATS), *((text, "full") for text in FULL)]
    return one_by_one("distortion", cases, lambda case: bench.distortion([case[0]], effort=case[1])[0])


def source() -> list[dict[str, Any]]:
    """Mean squared error of 28 matrices, and total bits with the codebooks counted once."""
    return one_by_one("source", (("4x8g17", 16, 16), ("6x8g25", 16, 16), ("6x8g25", 32, 128), ("7x9g32mq", 32, 128)), source_row)


def source_row(case: tuple[str, int, int]) -> dict[str, Any]:
    """Codebooks are fitted on N_FITTED of N_MATRICES matrices, with narrower beams than the codes are then chosen with, which takes most of the time.

    All matrices have the same distribution and take the same bytes, so that the error is measured on ENCODED of them, one that codebooks were fitted
    on and one that not, with weights by how many there are of each: of 1.3 million weights the mean squared error is known to a thousandth.
    """
    text, fitted, chosen = case
    format = Format.parse(f"{text}@gaussian")
    matrices = {i: torch.randn(1152, 1152, generator=torch.Generator().manual_seed(i)) for i in {*range(N_FITTED), *ENCODED}}
    identity = Hessian(tuple(torch.eye(len(piece)).unsqueeze(0) for piece in torch.arange(1152).split(128)))
    times = [clock()]
    with mock.patch.dict(EFFORTS, {"fast": replace(EFFORTS["full"], rounds=10, vectors_per_entry=600, several=Beam(fitted, 1))}):
        book = fit_book([Objective.of(matrices[i]) for i in range(N_FITTED)], format)
    times.append(clock())
    with mock.patch.dict(EFFORTS, {"fast": replace(EFFORTS["full"], several=Beam(chosen, 1))}):
        made = {i: encode(matrices[i], format, identity, book=book) for i in ENCODED}
    times.append(clock())
    codebooks = sum(tensor.numel() * tensor.element_size() for tensor in book.values())
    (own_bytes,) = {encoding.size_bytes - codebooks for encoding in made.values()}
    errors = {is_fitted: statistics.fmean(e.error for i, e in made.items() if (i < N_FITTED) == is_fitted) for is_fitted in (True, False)}
    return {
        "format": text,
        "beam_fitted": fitted,
        "beam": chosen,
        "matrices": N_MATRICES,
        "encoded": len(made),
        "bits_per_weight": 8 * (N_MATRICES * own_bytes + codebooks) / (N_MATRICES * 1152**2),
        "mse": (N_FITTED * errors[True] + (N_MATRICES - N_FITTED) * errors[False]) / N_MATRICES,
        "mse_not_fitted_on": errors[False],
        "seconds": {"fitting": times[1] - times[0], "codes": times[2] - times[1]},
    }


def speed() -> list[dict[str, Any]]:
    """Compiled loops beside the torch that they are compared with (on one thread, as it runs between them), in turn; medians."""
    rows = []
    for size, text in ((1152, "1x8g4"), (1152, "2x8g8"), (384, "1x6g3")):
        weight, hessian = bench.fixed_layer(size, size)
        seconds: dict[str, list[float]] = {"compiled": [], "torch": []}
        errors = {}
        for kind, library in [("compiled", native.library), ("compiled", native.library), ("torch", lambda: None)] * 2:
            with mock.patch.object(native, "library", library):
                start = clock()
                errors[kind] = encode(weight, Format.parse(text), Hessian.of(hessian)).error
                seconds[kind].append(1e6 * (clock() - start) / weight.numel())
        medians = {kind: statistics.median(values) for kind, values in seconds.items()}
        rows.append(
            {"shape": [size, size], "format": text, "threads": torch.get_num_threads(), "seconds_a_million": medians, "error": errors}
        )
        print(rows[-1], flush=True)
    return rows


def fixed() -> list[dict[str, Any]]:
    cases: list[tuple[tuple[int, int], str | float]] = [((n_out, n_in), text) for n_out, n_in, text in bench.AQLM]
    others = ("1x8g4", "1x8g4h", "1x6g3", "1x6g4", "2x8g8h", "4x4g8", "2x6g4", "1x9g3", "2x8g4", "1x8g2")
    cases += [((384, 384), text) for text in others] + [((1152, 1152), text) for text in ("1x8g4", "2x8g8h", "2x6g4")]
    return bench.encoding(cases)


def equal_bytes() -> list[dict[str, Any]]:
    rows = []
    for (n_out, n_in, text), (error, seconds) in bench.AQLM.items():
        bits = Format.parse(text).bits_per_weight((n_out, n_in))
        for row in bench.encoding([((n_out, n_in), bits)], efforts=("full",)):
            rows.append({**row, "against": text, "bits_allowed": bits, "aqlm_error": error, "aqlm_seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def menus() -> list[dict[str, Any]]:
    rows = []
    for name in ("mnist-dit", "mnist-unet"):
        subject = sedaq.load(name)
        with tempfile.TemporaryDirectory() as folder:
            store = EncodingStore(subject, Path(folder), calibration={"seed": 0, "n_images": 64, "steps": 10})
            times = [clock()]
            store.calibrate()
            times.append(clock())
            found = measured_menus(store, RATES)
            times.append(clock())
            wanted = [(layer, entry.format) for layer in subject.layers for entry in found[layer.name]]
            store.fill(wanted)
            times.append(clock())
            seconds = dict(zip(("calibration", "menus", "encoding"), (b - a for a, b in zip(times, times[1:], strict=False)), strict=True))
            coded = sum(layer.n_weights for layer, format in wanted if format.kind == "additive")
            errors = {
                rate: statistics.geometric_mean(
                    store.get(layer, entry.format).error for layer in subject.layers for entry in found[layer.name] if entry.rate == rate
                )
                for rate in RATES
            }
            shared = sum(bool(entry.book) for menu in found.values() for entry in menu)
        rows.append(
            {
                "subject": name,
                "seconds": seconds,
                "weights_encoded": coded,
                "seconds_a_million": seconds["encoding"] / coded * 1e6,
                "entries": sum(len(menu) for menu in found.values()),
                "entries_with_shared_codebooks": shared,
                "mean_error_by_rate": errors,
                "menus": {layer: [f"{entry.rate:g}: {entry.format}" for entry in menu] for layer, menu in found.items()},
            }
        )
        print({key: value for key, value in rows[-1].items() if key != "menus"}, flush=True)
    return rows


SECTIONS = {"distortion": distortion, "source": source, "speed": speed, "fixed": fixed, "bytes": equal_bytes, "menus": menus}
FILES = {
    "distortion": "distortion",
    "source": "gaussian_source",
    "speed": "encoder_speed",
    "fixed": "encode",
    "bytes": "encode_bytes",
    "menus": "encode_menus",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=sorted(SECTIONS))
    section = parser.parse_args().section
    rows = SECTIONS[section]()
    keep(FILES[section], f"python benchmarks/encoder.py {section}", rows)


if __name__ == "__main__":
    main()
