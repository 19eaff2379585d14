"""Rows of the tuning benchmarks: models measured on noise that nothing was chosen on.

A row stands in benchmarks/results as soon as it is measured and is read back from there, so that a table may grow over several sittings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import RESULTS, keep, kept, machine

from sedaq.aq.activations.quantizer import ActivationQuantizers
from sedaq.aq.encoding import Encoding
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.tune import tune
from sedaq.aq.tuning.tuned import Tuned
from sedaq.errors import InputError
from sedaq.kernels.timing import clock
from sedaq.models.noise import purpose_seed
from sedaq.models.sampling import conditions_of, sample_in_chunks
from sedaq.search.building import build_problem
from sedaq.search.uniform import uniform_choice
from sedaq.sensitivity.metrics.registry import METRICS, measure
from sedaq.sensitivity.metrics.sample import Sample
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.run import Run
from sedaq.storage import fingerprint, load_tensors, save_tensors

N_IMAGES, STEPS = 2000, 20
TUNE_STEPS = {"mnist-dit": 1200, "mnist-unet": 500}  # of the tables of tuned models
OTHER_STEPS = 500  # of other models
FULL = "full precision"
State = Callable[[], AbstractContextManager[None]]  # brings the subject into the state that is to be measured, and back


def uniform_plan(run: Run, bits: float) -> Plan:
    """The uniform plan of first order, for which nothing needs to be probed."""
    problem = build_problem(run.subject, run.menus, lambda name, entry: 0.0).bounded(bits=bits)
    formats = problem.formats(uniform_choice(problem, seed=run.settings.seed))
    return Plan.of(run.subject, formats, encoding=run.store.identity)


def tuned_state(
    run: Run, encodings: Mapping[str, Encoding], settings: TuneConfig | None = None, inputs: ActivationQuantizers | None = None
) -> tuple[State, dict[str, Any]]:
    """The subject tuned, untuned where there are no settings, and what a row says of it. A tuning that was cut short goes on."""
    tuned = Tuned(dict(encodings), {}, inputs=inputs)
    if settings:
        # Recordings of another seed or size have a folder of their own.
        buffers = run.folder / "trajectories" / f"{settings.n_images} of seed {settings.seed}"
        tuned = tune(run.subject, encodings, settings, inputs=inputs, folder=run.folder / "tuning", buffer_folder=buffers)
    details = {
        "tune_steps": settings.steps if settings else 0,
        "tune_images": settings.n_images if settings else 0,
        "tuning": identity_of(settings),
        "tuning_seconds": round(tuned.seconds, 1),
        "losses": tuned.losses,
        "ending": tuned.ending,
    }
    return partial(tuned.installed, run.subject), details


def identity_of(settings: TuneConfig | None) -> str | None:
    """What a row says of how it was tuned."""
    return settings and fingerprint(vars(settings))


class Rows:
    """Measured models of one run, in NAME.json of `folder`.

    Args:
        command: that makes the file.
        seeds: of the noise, of a purpose that no choice was made on.
        conditions: what else the rows depend on.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        command: str,
        seeds: Sequence[int],
        *,
        n_images: int = N_IMAGES,
        steps: int = STEPS,
        folder: Path = RESULTS,
        **conditions: Any,
    ) -> None:
        self.run, self.name, self.command, self.folder = run, name, command, folder
        self.seeds, self.n_images, self.steps = seeds, n_images, steps
        self.conditions = {"n_images": n_images, "steps": steps, "seeds": list(seeds), "subject": run.subject.fingerprint, **conditions}
        self.rows: dict[str, dict[str, Any]] = {row["name"]: row for row in kept(name, self.conditions, folder)}
        self.prober = Prober(run, split="test")
        self._full: dict[int, Sample] = {}

    def full_precision(self, **details: Any) -> None:
        """The row that others are compared with."""
        self.row(FULL, lambda: (nullcontext, details))

    def row(
        self,
        name: str,
        make: Callable[[], tuple[State, Mapping[str, Any]]],
        *,
        identity: Mapping[str, Any] | None = None,
        against: str | None = None,
    ) -> None:
        """Make and measure a model, unless the file has its row.

        Args:
            make: the state, and what else the row says.
            identity: what a row has to say to be that of this model; one that says anything else is made anew.
            against: name of another row, for their paired difference.

        Raises:
            InputError: where that row is missing, or its images are not in this run's folder.
        """
        known = self.rows.get(name)
        if known is not None and all(known.get(key) == value for key, value in (identity or {}).items()):
            return
        if against is not None and not (against in self.rows and all(self._features_path(against, seed).exists() for seed in self.seeds)):
            raise InputError(f"{name}: it is compared with {against!r}, which was not measured on this run; measure that row first")
        self.rows.pop(name, None)
        began = clock()
        state, details = make()
        made = clock()
        measured = [self._measured(name, seed, state) for seed in self.seeds]
        seconds = {"seconds_made": round(made - began, 1), "seconds_measured": round(clock() - made, 1)}
        shared = set.intersection(*(set(metrics) for metrics, _ in measured))
        means = {key: float(np.mean([metrics[key].value for metrics, _ in measured])) for key in sorted(shared)}
        self.rows[name] = {
            "name": name,
            **details,
            **seconds,
            **{key: machine()[key] for key in ("cpu", "threads")},
            **means,
            "fid_by_seed": [metrics["fid"].value for metrics, _ in measured],
            "fid_se": float(np.sqrt(sum(metrics["fid"].se ** 2 for metrics, _ in measured)) / len(measured)),
            "excess": _mean_difference([difference for _, difference in measured]),
            **({"difference": _mean_difference([self._worse(name, against, seed) for seed in self.seeds])} if against else {}),
        }
        keep(self.name, self.command, list(self.rows.values()), self.folder, conditions=self.conditions)

    def _measured(self, name: str, seed: int, state: State) -> tuple[dict[str, Any], tuple[float, float, float]]:
        """Metrics, and the Fréchet distance above full precision's on the same noise with a 95 % interval."""
        full, subject, reference = self._full_precision(seed), self.run.subject, self.prober.reference
        with state():
            images = full.images if name == FULL else self._sampled(f"{name}, noise {seed}", seed)
        features = self.prober.extractor(images)
        requested = self.prober.extractor.requested(conditions_of(subject.conditions, 0, self.n_images))
        sample = Sample(images, features, reference, requested, full, subject.cycle)
        worse = METRICS["fid"].worsening(features.pooled, full.features.pooled, reference, cycle=subject.cycle, seed=0)
        save_tensors(self._features_path(name, seed), "images", {"pooled": features.pooled}, {"seed": seed})
        return dict(measure(sample, seed=0)), worse

    def _features_path(self, name: str, seed: int) -> Path:
        return self.run.folder / "features of rows" / f"{self.name}, {name}, {self.n_images} images of seed {seed}.safetensors"

    def _worse(self, name: str, other: str, seed: int) -> tuple[float, float, float]:
        """By how much the one row's Fréchet distance is above the other's on the same noise, with a 95 % interval."""
        one, two = (load_tensors(self._features_path(row, seed), "images")[0]["pooled"] for row in (name, other))
        return METRICS["fid"].worsening(one, two, self.prober.reference, cycle=self.run.subject.cycle, seed=0)

    def _full_precision(self, seed: int) -> Sample:
        if seed not in self._full:
            path = self.run.folder / FULL / f"{self.n_images} images of seed {seed} in {self.steps} steps.safetensors"
            if not path.exists():
                save_tensors(path, "images", {"images": self._sampled(f"{FULL}, noise {seed}", seed)}, {"seed": seed})
            images = load_tensors(path, "images")[0]["images"]
            self._full[seed] = Sample(images, self.prober.extractor(images), self.prober.reference, cycle=self.run.subject.cycle)
        return self._full[seed]

    def _sampled(self, description: str, seed: int) -> torch.Tensor:
        noise = purpose_seed(seed, "tuning benchmark")
        sampling = replace(self.run.settings.sampling, steps=self.steps)
        return sample_in_chunks(self.run.subject.sample, description, sampling, seed=noise, n_images=self.n_images)


def _mean_difference(differences: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Mean over noise seeds; the 95 % interval's sides add up as independent errors do."""
    values = np.array(differences)
    mean = values[:, 0].mean()
    low, high = (np.sqrt(((values[:, side] - values[:, 0]) ** 2).sum()) / len(values) for side in (1, 2))
    return {"value": float(mean), "ci": [float(mean - low), float(mean + high)]}
