"""Search for the model that tuning makes: a model whose best plans before and after tuning differ by construction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sedaq import Budget, Run
from sedaq.errors import InputError
from sedaq.models.sampling import SamplingConfig
from sedaq.sensitivity.predictor import cross_validation
from sedaq.sensitivity.run import probe_journal

pytestmark = pytest.mark.slow

# Of `narrow` one mean alone matters, which codebooks and scales that are tuned for it can have right; of `wide` every output.
SUBJECT = """
import torch

from sedaq import Subject
from sedaq.models.noise import image_noise


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow = torch.nn.Linear(28, 28, bias=False)
        self.wide = torch.nn.Linear(28, 28, bias=False)

    def forward(self, x):
        return self.wide(x) + 10 * self.narrow(x).mean(-1, keepdim=True)


def make():
    torch.manual_seed(0)
    net = Net()

    def sample(*, seed, start, n_images, steps=None, **settings):
        x = image_noise(seed, start, n_images, (1, 28, 28))
        for _ in range(steps or 2):
            x = x + net(x)
        return x.sigmoid()

    return Subject(net, sample=sample, conditions=list(range(10)), name="toy", extractor="embedded")
"""
METRIC, N_PROBES, STEPS = "feature_distance", 14, 200
RATES, ONE_OF_THEM = (2.0, 4.0), Budget(bits=2.95)  # has room for one layer at the higher rate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("tuned-search")
    (folder / "toy.py").write_text(SUBJECT)
    how = {"sampling": SamplingConfig(steps=2), "images": 32, "calibration_images": 8, "calibration_steps": 2, "rates": RATES}
    with pytest.MonkeyPatch.context() as patch:  # less repetition
        patch.setattr(cross_validation, "REPEATS", 1)
        patch.setattr(cross_validation, "BOOTSTRAPS", 20)
        run = Run(folder / "run", f"{folder / 'toy.py'}:make", **how)
        run.probe(N_PROBES).fit(METRIC)
        run.probe(N_PROBES, tuned_steps=STEPS).fit(METRIC, tuned=True)
        yield run


def rates_of(run: Run, **how: object) -> dict[str, float]:
    found = run.search(ONE_OF_THEM, **{"trials": 0, **how}).plan
    return {name: run._opened.entry(name, format).rate for name, format in found.formats.items()}


def test_each_search_finds_the_plan_of_its_model(run: Run) -> None:
    assert rates_of(run) == {"narrow": 4.0, "wide": 2.0}
    assert rates_of(run, tuned=True) == {"narrow": 2.0, "wide": 4.0}


def test_verification_measures_tuned_plans_and_the_plan_says_so(run: Run) -> None:
    found, untuned = (run.search(ONE_OF_THEM, trials=0, verify=2, tuned=tuned) for tuned in (True, False))
    assert found.measured["metrics"][METRIC]["value"] < untuned.measured["metrics"][METRIC]["value"] / 2
    assert any(f"after {STEPS} steps of tuning" in note for note in found.plan.provenance["notes"])
    assert not any("tuning" in note for note in untuned.plan.provenance["notes"])


def test_the_plans_of_a_verification_are_tuned_as_long_as_the_model_that_is_handed_out(run: Run) -> None:
    how = {"trials": 0, "verify": 3, "tuned": True}
    found, short = run.search(ONE_OF_THEM, tune_steps=2 * STEPS, **how), run.search(ONE_OF_THEM, **how)
    assert found.measured["tuned_steps"] == 2 * STEPS and found.measured["n_images"] == 2 * short.measured["n_images"]
    assert rates_of(run, tune_steps=2 * STEPS, **how) == {"narrow": 2.0, "wide": 4.0}
    long = [record for record in probe_journal(run._opened.folder).read() if record.get("tuned_steps") == 2 * STEPS]
    raced = {tuple(sorted(record["layers"].items())) for record in long}
    untuned = run.search(ONE_OF_THEM, trials=0, verify=3).plan
    assert {
        tuple(sorted((name, str(format)) for name, format in plan.formats.items())) for plan in (found.plan, untuned, found.uniform)
    } <= raced
    with pytest.raises(InputError, match=f"`tune_steps`: got 5; plans were probed after {STEPS} steps"):
        run.search(ONE_OF_THEM, tune_steps=5, **how)
    n = len(probe_journal(run._opened.folder).read())
    with pytest.raises(InputError, match="`tune_steps`: got 5"):
        run.search(Budget(bits=4.0), tune_steps=5, **how)
    assert len(probe_journal(run._opened.folder).read()) == n, "nothing was measured before"


def test_a_run_without_tuned_labels(run: Run, tmp_path: Path) -> None:
    other = Run(
        tmp_path / "run",
        run._opened.subject_argument,
        sampling=SamplingConfig(steps=2),
        images=16,
        calibration_images=8,
        calibration_steps=2,
    )
    other.probe(0)
    with pytest.raises(InputError, match=r"has no predictor of tuned plans; run `sedaq probe` with `tuned_steps`"):
        other.search(ONE_OF_THEM, tuned=True)
    with pytest.raises(InputError, match=r"holds 0 probes.*`configs` and `tuned_steps`"):
        other.fit(tuned=True)


@pytest.mark.parametrize(("steps", "design"), [(0, "stratified"), (-3, "stratified"), (5, "auto")])
def test_steps_that_make_no_sense(run: Run, steps: int, design: str) -> None:
    with pytest.raises(InputError, match=rf"`tuned_steps`: got {steps} for `design` {design}; give a number above 0"):
        run.probe(12, design, tuned_steps=steps)


def test_a_prior_does_not_speak_of_tuned_plans(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run._opened, "prior", object())
    for verb in (lambda: run.fit(METRIC, tuned=True), lambda: run.search(ONE_OF_THEM, tuned=True)):
        with pytest.raises(InputError, match=r"`prior`: .* not tuned; leave it out where `tuned` is given"):
            verb()
