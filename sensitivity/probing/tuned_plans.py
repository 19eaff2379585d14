"""Plans as a short tuning leaves them. Tuning gives back unevenly what plans cost, and what it cannot give back should decide bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ...aq.activations.quantizer import ActivationQuantizers
from ...aq.formats import Format
from ...aq.tuning.components import together, tune_components
from ...aq.tuning.settings import TuneConfig
from ...models.trace import N_PARTS
from ..run import Run
from ..settings import Settings

TRAJECTORIES = "trajectories"  # folder of a run: what all of its tunings learn from
N_IMAGES = 256  # at most, whose trajectories are learned from


def short_tuning(settings: Settings, steps: int) -> TuneConfig:
    """How plans of a run are tuned before they are measured. Nobody is handed such a model, so that its images need not be looked at once more."""
    n_images = min(N_IMAGES, N_PARTS * max(1, settings.n_images // N_PARTS))
    return TuneConfig(steps=steps, n_images=n_images, sampling_steps=settings.steps, check_every=steps, judged_images=0, seed=settings.seed)


@contextmanager
def tuned_plan(run: Run, formats: Mapping[str, Format], steps: int, inputs: ActivationQuantizers | None) -> Iterator[None]:
    """Run the block with the run's model, which is in full precision, quantized by a plan and tuned. Nothing is left of that after it.

    Every plan is tuned from its own encodings, so that it does not matter which ones were tuned before, where, and whether they were stopped.
    """
    run.store.fill([(layer, formats[layer.name]) for layer in run.subject.layers])
    encodings = {layer.name: run.store.get(layer, formats[layer.name]) for layer in run.subject.layers}
    parts = tune_components(
        run.subject,
        encodings,
        short_tuning(run.settings, steps),
        inputs=inputs,
        sampling=run.settings.sampling,
        buffer_folder=run.folder / TRAJECTORIES,
    )
    with together(parts, encodings, inputs).installed(run.subject):
        yield
