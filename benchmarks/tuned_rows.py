"""Rows of the tuning benchmarks: a model is measured on noise that nothing was chosen on, and kept as soon as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sedaq.models.noise import purpose_seed
from sedaq.models.sampling import conditions_of, sample_in_chunks
from sedaq.sensitivity.fidelity import Features, FullPrecision, measure
from sedaq.sensitivity.frechet import frechet_difference
from sedaq.sensitivity.prober import Prober
from sedaq.sensitivity.run import Run
from sedaq.storage import append_record, load_tensors, read_records, save_tensors

N_IMAGES, STEPS = 2000, 20
State = Callable[[], AbstractContextManager[None]]  # brings the subject into the state that is to be measured, and back
METRICS = ("fid", "kid", "agreement", "psnr", "feature_distance")


class Rows:
    """Measured models of one run, in build/tuning/SUBJECT.

    Args:
        seeds: of the noise, of a purpose that no choice was made on.
    """

    def __init__(self, run: Run, folder: Path, seeds: Sequence[int]) -> None:
        self.run, self.folder, self.seeds = run, folder, seeds
        self.prober = Prober(run, split="test")
        self.rows = {row["name"]: row for row in read_records(folder / "rows.jsonl", "row")}
        self._full: dict[int, FullPrecision] = {}

    def row(self, name: str, make: Callable[[], tuple[State, dict[str, Any]]]) -> dict[str, Any]:
        """The row of that name; made and measured if it is not there.

        Args:
            make: the state, and what else the row says.
        """
        if name not in self.rows:
            began = time.perf_counter()
            state, details = make()
            made = time.perf_counter()
            measured = [self._measure(name, seed, state) for seed in self.seeds]
            row = {
                "name": name,
                **details,
                "seconds_made": round(made - began, 1),
                "seconds_measured": round(time.perf_counter() - made, 1),
            }
            row |= {key: float(np.mean([m[key].value for m in measured])) for key in METRICS if all(key in m for m in measured)}
            append_record(self.folder / "rows.jsonl", "row", row)
            self.rows[name] = row
        return self.rows[name]

    def difference(self, name: str, other: str) -> dict[str, Any]:
        """Fréchet distance of one row minus another's on equal noise: mean over seeds with a 95 % interval."""
        cycle = self.run.subject.cycle
        found = [
            frechet_difference(
                self._features(name, seed), self._features(other, seed), self.prober.reference.statistics, cycle=cycle, seed=0
            )
            for seed in self.seeds
        ]
        values = np.array(found)
        mean = values[:, 0].mean()
        low, high = (np.sqrt(((values[:, k] - values[:, 0]) ** 2).sum()) / len(values) for k in (1, 2))
        return {"value": float(mean), "ci": [float(mean - low), float(mean + high)]}

    def _measure(self, name: str, seed: int, state: State) -> dict[str, Any]:
        full = self._full_precision(seed)
        with state():
            images, features = self._sampled(f"{name}, noise {seed}", seed)
        save_tensors(self._path(name, seed), "features", {"pooled": features.pooled}, {"name": name, "seed": seed})
        subject = self.run.subject
        return dict(
            measure(
                features,
                images,
                reference=self.prober.reference,
                requested=self.prober.extractor.requested(conditions_of(subject.conditions, 0, N_IMAGES)),
                full_precision=full,
                cycle=subject.cycle,
                seed=0,
            )
        )

    def _full_precision(self, seed: int) -> FullPrecision:
        if seed not in self._full:
            self._full[seed] = FullPrecision(*self._sampled(f"full precision, noise {seed}", seed))
        return self._full[seed]

    def _sampled(self, description: str, seed: int) -> tuple[torch.Tensor, Features]:
        noise = purpose_seed(seed, "tuning benchmark")
        images = sample_in_chunks(self.run.subject.sample, description, seed=noise, n_images=N_IMAGES, steps=STEPS)
        return images, self.prober.extractor(images)

    def _path(self, name: str, seed: int) -> Path:
        return self.folder / "features" / f"{name.replace(' ', '_').replace('+', 'and')}.{seed}.safetensors"

    def _features(self, name: str, seed: int) -> torch.Tensor:
        return load_tensors(self._path(name, seed), "features")[0]["pooled"]
