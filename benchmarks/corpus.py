"""Models that teach what makes a layer sensitive, and their runs:  python benchmarks/corpus.py NAME … --data DIR      → build/corpus/NAME/{model,run}

For each: the model, trained unless sedaq ships it (corpus_models.MODELS says how); then an ordinary run of it with stratified probes to learn from, random plans
of the same kind on other noise ("unseen"), and every layer alone at the lowest rates ("truth"). All of it goes on where it stopped.
What each model and its run came to is kept in benchmarks/results/corpus.json. DIR holds mnist.npz, cifar10_train_jpegs.npz and cifar10_test_jpegs.npz.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from corpus_models import MODELS, Model, folder_of, subject_argument
from corpus_training import test_loss, train_classifier, train_model
from results import RESULTS, keep, kept

from sedaq.progress import shown, track
from sedaq.sensitivity.evaluation import evaluate
from sedaq.sensitivity.probing.designs import Plan, design_plans, rates_of
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.probing.ruined import lowest_useful_rate, plans_above
from sedaq.sensitivity.run import Run, probe_journal
from sedaq.sensitivity.settings import Settings

COMMAND = "python benchmarks/corpus.py NAME --data DIR"


@dataclass(frozen=True)
class Sizes:
    """What is measured of every model, beside what the table of models says.

    rates: of menus, without 3.5, which a line through its neighbours says. Without 2.5, too, half of them would ruin a model, and probing would draw
    other plans. truth_rates: so many of the lowest, at which layers are measured alone. At two bits and 200 images one layer's Fréchet distance is below
    the noise, and a random plan tells more in the same time. evaluated_images, evaluated_steps: of the model in full precision.
    training_steps, classifier_steps: where they are others than the tables'.
    """

    rates: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0, 4.0)
    n_probes: int = 36
    n_unseen: int = 40
    truth_rates: int = 1
    evaluated_images: int = 1000
    evaluated_steps: int = 20
    exclude: tuple[str, ...] = ()
    training_steps: int | None = None
    classifier_steps: int | None = None
    results: Path = RESULTS


def prepare(name: str, data: Path, sizes: Sizes) -> dict[str, Any]:
    """Settings of a run of the model, which is trained now if it has not been: where its images are compared, and with what."""
    training = MODELS[name].training
    if training is None:
        return {}
    train_model(name, data, steps=sizes.training_steps)
    if training.data != "cifar":
        return {}
    features = train_classifier(data, steps=sizes.classifier_steps)
    return {"extractor": f"transformers:{features / 'classifier'}", "reference": str(features / "train.safetensors")}


def random_plans(run: Run, measurer: Measurer, n_plans: int) -> list[Plan]:
    """As probing draws them: where low rates ruin everything, mostly above."""
    plans = design_plans("stratified", run.subject.layers, run.menus, n_plans=n_plans, seed=run.settings.seed)
    floor = lowest_useful_rate(run, measurer)
    return plans if floor is None else plans_above(floor, run, plans[: len(rates_of(run.menus))], n_plans)


def layers_alone(run: Run, sizes: Sizes) -> list[Plan]:
    """Full precision, and every layer alone at each of the lowest rates."""
    layers = run.subject.layers
    return design_plans("layer", layers, run.menus, n_plans=1 + sizes.truth_rates * len(layers), seed=run.settings.seed)


def measure(run: Run, model: Model, sizes: Sizes) -> None:
    """The plans of all three purposes."""
    probe_run(run, n_configs=sizes.n_probes)
    with Measurer(Prober(run)) as measurer:
        unseen = random_plans(run, measurer, sizes.n_probes + sizes.n_unseen)[sizes.n_probes :]
        tasks = [PlanTask(plan, model.n_images, "unseen") for plan in unseen]
        tasks += [PlanTask(plan, model.truth_images, "truth") for plan in layers_alone(run, sizes)]
        for _ in track(measurer.measure(tasks), "unseen plans and layers alone", len(tasks)):
            pass


def above_noise(records: list[dict[str, Any]], metric: str) -> float:
    """The share whose metric is two standard errors above zero."""
    known = [record["metrics"][metric] for record in records]
    return float(np.mean([one["value"] > 2 * one["se"] for one in known if one["value"] is not None]))


def measured_row(run: Run, purpose: str) -> dict[str, Any]:
    """What plans measured for a purpose came to; above_noise: of the distances above full precision's, distances_above_noise: of image by image."""
    records = [record for record in probe_journal(run.folder).read() if record["purpose"] == purpose]
    return {
        "plans": len(records),
        "images": records[0]["n_images"],
        "ruined": sum(record["ruined"] for record in records),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "above_noise": above_noise(records, "fid_excess"),
        "distances_above_noise": above_noise(records, "feature_distance"),
    }


def row_of(name: str, model: Model, run: Run, data: Path, sizes: Sizes) -> dict[str, Any]:
    """What a model and its run came to."""
    reference = run.settings.reference and str(Path(run.settings.reference).with_name("test.safetensors"))
    how: dict[str, Any] = {"extractor": run.settings.extractor, "reference": reference, "keep_in": folder_of(name)}
    sampling = replace(model.sampling, steps=sizes.evaluated_steps)
    found = evaluate(subject_argument(name), n_images=sizes.evaluated_images, sampling=sampling, **how)
    return {
        "model": name,
        "why": model.why,
        "is_test": model.is_test,
        "layers": len(run.subject.layers),
        "n_weights": sum(layer.n_weights for layer in run.subject.layers),
        "training_steps": model.training and (sizes.training_steps or model.training.steps),
        "test_loss": model.training and test_loss(name, data),
        **{metric: found["metrics"][metric] for metric in ("fid", "agreement") if metric in found["metrics"]},
        "steps": model.steps,
        **{purpose: measured_row(run, purpose) for purpose in ("probe", "unseen", "truth")},
    }


def add(name: str, model: Model, data: Path, sizes: Sizes, *, only_train: bool = False) -> None:
    """Bring a model, its run and its row into the corpus."""
    own = prepare(name, data, sizes)
    if only_train:
        return
    sampling = replace(model.sampling, steps=model.steps)
    settings = Settings(n_images=model.n_images, sampling=sampling, rates=sizes.rates, exclude=sizes.exclude, **own)
    run = Run.begin(subject_argument(name), folder_of(name) / "run", settings)
    measure(run, model, sizes)
    conditions = {"rates": list(sizes.rates), "evaluated": [sizes.evaluated_images, sizes.evaluated_steps]}
    rows = {row["model"]: row for row in kept("corpus", conditions, sizes.results)}
    rows[name] = row_of(name, model, run, data, sizes)
    keep("corpus", COMMAND, [rows[known] for known in MODELS if known in rows], sizes.results, conditions=conditions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only-train", action="store_true", help="measure nothing yet")
    arguments = parser.parse_args()
    with shown():
        for name in arguments.names:
            add(name, MODELS[name], arguments.data, Sizes(), only_train=arguments.only_train)


if __name__ == "__main__":
    main()
