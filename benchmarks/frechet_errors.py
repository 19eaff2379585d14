"""Standard errors of the Fréchet distance against its true spread:  python benchmarks/frechet_errors.py

24 disjoint sets of 512 images of mnist-dit, in full precision and with random errors in its weights: how the distances and their differences spread, and what a
bootstrap within conditions and one that draws images blindly say of it. 5 minutes.
"""

from __future__ import annotations

from typing import Any

import torch
from results import keep

from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig, sample_in_chunks
from sedaq.progress import shown
from sedaq.sensitivity.metrics.bootstrap import resampled, resamples
from sedaq.sensitivity.metrics.extractors import load_extractor
from sedaq.sensitivity.metrics.frechet import Resampled
from sedaq.sensitivity.metrics.reference import shipped_reference

N_SETS, N_IMAGES, STEPS, N_BOOTSTRAP, NOISE = 24, 512, 10, 40, 0.08


def main() -> None:
    subject = load("mnist-dit")
    extractor = load_extractor(str(subject.extractor), image_shape=subject.image_shape)
    reference = shipped_reference("train", extractor).statistics  # type: ignore[arg-type]
    features = {}
    with shown():
        for name, noise in (("full precision", 0.0), ("noisy weights", NOISE)):
            rng = torch.Generator().manual_seed(0)
            for module in subject.denoiser.modules():
                if isinstance(module, torch.nn.Linear):
                    weight = module.weight.data
                    weight += noise * weight.std() * torch.randn(weight.shape, generator=rng)
            images = sample_in_chunks(subject.sample, name, SamplingConfig(steps=STEPS), seed=5, n_images=N_SETS * N_IMAGES, chunk=N_IMAGES)
            features[name] = extractor(images).pooled.split(N_IMAGES)
    found: dict[str, list[dict[str, float]]] = {"distance": [], "within conditions": [], "blindly": []}
    for one in range(N_SETS):
        for label, cycle in (("within conditions", subject.cycle), ("blindly", 1)):
            # sets begin at another condition each; the cycle is the same from there
            counts = resamples(N_IMAGES, N_BOOTSTRAP, one, cycle)
            values = {name: resampled(Resampled(sets[one], reference), counts) for name, sets in features.items()}
            values["difference"] = values["noisy weights"] - values["full precision"]
            found[label].append({name: v[3:].std().item() for name, v in values.items()})
        found["distance"].append({name: v[0].item() for name, v in values.items()})
    rows: list[dict[str, Any]] = []
    for name in ("full precision", "noisy weights", "difference"):
        distances = torch.tensor([entry[name] for entry in found["distance"]])
        errors = {label: sum(entry[name] for entry in found[label]) / N_SETS for label in ("within conditions", "blindly")}
        rows.append({"of": name, "mean": distances.mean().item(), "spread": distances.std().item(), **errors})
        print(rows[-1])
    keep("frechet_errors", "python benchmarks/frechet_errors.py", rows)


if __name__ == "__main__":
    main()
