"""The verb `search` on a run folder: what find_plan and find_front need comes from the run, what they find goes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..aq.activations.calibration import ranged
from ..aq.activations.choice import choose
from ..aq.activations.quantizer import Activation
from ..aq.export.apply import pipeline_bytes
from ..aq.formats import Format
from ..aq.plans.plan import PLAN_MARK
from ..aq.profiling.step_times import StepTimes
from ..errors import InputError
from ..outputs import check_out
from ..runtime.owner import owner
from ..runtime.status import telling
from ..sensitivity.predictor.fitting import load_predictor, predictor_folder
from ..sensitivity.predictor.predictor import PREDICTOR_FILE, Predictor
from ..sensitivity.predictor.unfitted import MIN_FEW, predictor_of
from ..sensitivity.probing.measurer import Measurer, PlanTask
from ..sensitivity.probing.prober import Measurement, Prober
from ..sensitivity.probing.probes import read_probes
from ..sensitivity.run import PROBE, TUNED_PROBE, Run
from ..storage import fingerprint, write_json
from .artifacts import found_before, probe_keys
from .config import Budget, SearchConfig
from .engine import SearchResult
from .find import FRONT_BITS, find_front, find_plan
from .verify import Rung, Verification, rungs_to

COST_MODEL_BYTES = 1024  # of a pipeline, by which the text of the kernels' cost model may be longer on another machine
SPARE_BYTES = COST_MODEL_BYTES + 1024  # and by which a plan's text may be longer than that of the first plan


def find_within_pipeline(run: Run, limit: int, find: Callable[[int, bool], SearchResult]) -> SearchResult:
    """The plan with which the pipeline's whole folder, its plan and config included, has at most `limit` bytes.

    Args:
        find: the search for a bound on the denoiser's file; it verifies if told so.
    """
    if run.subject.folder is None or not run.subject.components:
        raise InputError(f"`pipeline_size`: {run.subject.name} is not a pipeline's folder; use `size` for the denoiser's file")
    first = find(limit, False)
    room = limit - (pipeline_bytes(run.subject, first.plan) - first.plan.size_bytes) - SPARE_BYTES
    try:
        while True:
            found = find(room, True)
            excess = pipeline_bytes(run.subject, found.plan) + COST_MODEL_BYTES - limit
            if excess <= 0:
                return found
            room = found.plan.size_bytes - excess
    except InputError as error:
        raise InputError(f"`pipeline_size` {limit}: for the denoiser's file, {error}") from error


@telling("search")
def search_run(
    run: Run, budget: Budget, config: SearchConfig | None = None, *, executor: str = "serial", out: Path | None = None
) -> SearchResult:
    """Find a plan within a budget and save it to `out` (plans/BITS.json in the run by default).

    What is predicted is of weights alone; verification measures rounded inputs, too. That of tuned plans begins with the plan that the same search
    finds for the untuned model, where a predictor was fitted for it.

    Args:
        executor: where plans are measured: "serial", "processes:N", "ray:auto" or "ray://HOST:PORT".
    """
    if out is not None:
        check_out("out", out, PLAN_MARK)
    config = config or SearchConfig()
    predictor, times = predictor_of(run, tuned=config.tuned), None
    _rungs(run, predictor, config)  # what is wrong with them is said before anything is measured
    races = config.tuned and config.verify and (predictor_folder(run) / PREDICTOR_FILE).exists()
    untuned = load_predictor(run) if races else None
    choices = rounded_layers(run, config.activations, config.activation_schemes)
    if budget.ms_per_step is not None:
        times = StepTimes.of_run(run.folder, run.subject, budget.step_images, run.settings.sampling)

    def found_by(predictor: Predictor, config: SearchConfig, file_bytes: int | None, entrants: Sequence[SearchResult] = ()) -> SearchResult:
        with verification(run, predictor, config, executor, choices) as verifying:
            return find_plan(
                run.subject,
                run.menus,
                predictor,
                bits=budget.bits,
                size_bytes=min((limit for limit in (budget.size_bytes, file_bytes) if limit is not None), default=None),
                ms_per_step=budget.ms_per_step,
                times=times,
                verification=verifying,
                entrants=[entrant.plan.formats for entrant in entrants],
                encoding=run.store.identity,
                activations=choices,
                **config.options,
            )

    def find(file_bytes: int | None, verified: bool = True) -> SearchResult:
        if not verified:
            return found_by(predictor, replace(config, verify=0, tune_steps=None), file_bytes)
        entrants = [found_by(untuned, replace(config, tuned=False, tune_steps=None), file_bytes)] if untuned else []
        return found_by(predictor, config, file_bytes, entrants)

    def search() -> list[SearchResult]:
        return [find(None) if budget.pipeline_bytes is None else find_within_pipeline(run, budget.pipeline_bytes, find)]

    question = asdict(budget) if untuned is None else [asdict(budget), fingerprint(untuned.to_json()), probe_keys(run, PROBE)]
    (found,) = found_before(run, question, config, search, predictor=predictor, activations=choices, times=times)
    for path in (run.folder / "plans" / f"{found.plan.bits_per_weight:.3f}.json", out):
        if path is not None:
            found.plan.save(path)
    return found


@telling("search")
def search_front(
    run: Run, config: SearchConfig | None = None, *, bits: Sequence[float] = FRONT_BITS, executor: str = "serial"
) -> list[SearchResult]:
    """The whole front, kept in plans/front.json of the run. Arguments as in `search_run`."""
    config = config or SearchConfig()
    predictor, choices = predictor_of(run, tuned=config.tuned), rounded_layers(run, config.activations, config.activation_schemes)

    def search() -> list[SearchResult]:
        with verification(run, predictor, config, executor, choices) as verifying:
            return find_front(
                run.subject,
                run.menus,
                predictor,
                bits=bits,
                verification=verifying,
                encoding=run.store.identity,
                activations=choices,
                **config.options,
            )

    found = found_before(run, list(bits), config, search, predictor=predictor, activations=choices)
    write_json(run.folder / "plans" / "front.json", "front", {"plans": [plan.to_dict() for plan in found], **owner(run.folder)})
    return found


def rounded_layers(run: Run, bits: int | None, schemes: Sequence[str] | None) -> dict[str, Activation]:
    """How the inputs of each layer are rounded; what was measured for it is kept in the run. Nothing where `bits` is None."""
    if bits is None:
        return {}
    settings = run.settings
    return choose(
        run.subject,
        bits,
        schemes=schemes,
        keep_in=run.folder / "activations",
        sampling=settings.sampling,
        seed=settings.seed,
    )


@dataclass(frozen=True)
class _Verifying:
    """Measures plans on the noise of verification."""

    measurer: Measurer

    def measure(self, plans: Sequence[Mapping[str, Format]], rung: Rung) -> Iterator[Measurement]:
        return self.measurer.in_order([PlanTask(plan, rung.n_images, "verify", rung.steps, rung.tuned_steps) for plan in plans])

    def worsening(self, a: Measurement, b: Measurement, metric: str) -> tuple[float, float, float]:
        return self.measurer.prober.worsening(a, b, metric)


@contextmanager
def verification(
    run: Run, predictor: Predictor, config: SearchConfig, executor: str = "serial", activations: Mapping[str, Activation] | None = None
) -> Iterator[Verification | None]:
    """As `config` says, if it asks for any; the predictor learns from what is measured beside the run's probes."""
    if config.verify == 0:
        yield None
        return
    inputs = ranged(run.subject, activations or {}, run.settings.seed, run.settings.sampling)
    with Measurer(Prober(run, inputs=inputs), executor) as measurer:
        # The predictor knows nothing of rounded inputs, so that it cannot learn from models that have them.
        yield verification_by(measurer, predictor, config, learning=not activations)


def verification_by(measurer: Measurer, predictor: Predictor, config: SearchConfig, *, learning: bool) -> Verification:
    """By `measurer`, on the run's own number of images unless told otherwise. The predictor learns from it if it is `learning`."""
    run, purpose = measurer.prober.run, TUNED_PROBE if predictor.tuned_steps else PROBE

    def refit(measured: Sequence[Measurement]) -> Predictor:
        others = [measurement.record for measurement in measured]
        try:
            probes = read_probes(
                run, predictor.metric, purpose=purpose, tuned_steps=predictor.tuned_steps or None, others=others, at_least=MIN_FEW
            )
        except InputError:
            if predictor.by_prior:  # which so few plans teach nothing
                return predictor
            raise
        return predictor.refit(probes, run.settings.seed)

    return Verification(config.verify, _Verifying(measurer), refit if learning else None, _rungs(run, predictor, config))


def _rungs(run: Run, predictor: Predictor, config: SearchConfig) -> tuple[Rung, ...]:
    first = Rung(config.images or run.settings.n_images, run.settings.steps, predictor.tuned_steps)
    return (first,) if config.tune_steps is None else rungs_to(first, config.tune_steps)
