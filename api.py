"""The Python interface: a run folder and its verbs, and what needs no run.

    run = sedaq.Run("runs/dit", model="mnist-dit")
    run.probe(configs=36)
    run.fit()
    found = run.search(sedaq.Budget(bits=2.0), verify=8)
    run.apply(found.plan, "small", tune=sedaq.TuneConfig(steps=240))

Everything that the command line does can be done with these; a keyword carries its flag's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .aq.export import apply as export
from .aq.export import inspection
from .aq.plans.menu import heuristic_menus
from .aq.plans.plan import Plan
from .aq.profiling.operations import tokens_of
from .aq.tuning.settings import TuneConfig
from .errors import InputError
from .models.loading import load
from .models.sampling import SamplingConfig
from .models.subject import Subject
from .search.budgets import parse_size
from .search.config import Budget, SearchConfig
from .search.engine import SearchResult
from .search.find import FRONT_BITS
from .sensitivity import evaluation, kept_evaluations
from .sensitivity import run as runs
from .sensitivity.settings import TEN_STEPS, Settings
from .storage import local_folder

if TYPE_CHECKING:
    from .sensitivity.predictor.fitting import FitResult
    from .sensitivity.probing.forecast import Forecast

Model = str | Path | Subject


class Run:
    """A folder that holds one model's probes, predictor and plans.

    Args:
        folder: is made by the first `probe`; one that holds a run opens it.
        model: what `sedaq.load` takes. A run knows a shipped name or a folder that it was begun with; others have to be named for what samples or encodes.
        sampling: how images are sampled; 10 steps unless it says others.
        images: of each probe, 512 by default.
        calibration_images: images whose activations make the calibration matrices; 16 to 64 by default, fewer of large images.
        calibration_steps: of sampling those images, a fifth fewer or more for parts of them; as many as for probes by default, and at least 20.
        reference_images: sampled as a reference where none is given, 2,000 by default.
        rates: total bits per weight that menus have a format for; 1.5 to 4 by halves by default.
        seed: of every random choice, 0 by default.
        extractor: what the Fréchet distance looks at: embedded, inception[:FILE] or transformers:FOLDER; the model's own by default.
        reference: real images or their statistics to compare with: a folder, a .npz or a statistics file.
        exclude: globs of layers that are left alone.
        components: of a pipeline, what is quantized, such as unet, text_encoder, vae; its denoisers by default.
        effort: of the encoder: draft, fast (the default), full or seconds a layer.
        weighting: of the calibration's timesteps: uniform (the default), balanced, early or late.
        prior: what other models taught, by `sedaq learn`: a prior's file, or the corpus that it lies beside; the user's own, or sedaq's, by default.
        executor, device: where work runs: "serial", "processes:4", "ray:auto" or "ray://HOST:PORT", and torch's device.

    Raises:
        InputError: no model is named for a new run, or the run was begun with other settings, which the message names.

    Example:
        >>> run = Run("runs/dit", model="mnist-dit")  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        model: Model | None = None,
        *,
        sampling: SamplingConfig | None = None,
        images: int | None = None,
        calibration_images: int | None = None,
        calibration_steps: int | None = None,
        reference_images: int | None = None,
        rates: Sequence[float] | None = None,
        seed: int | None = None,
        extractor: str | None = None,
        reference: str | Path | None = None,
        exclude: Sequence[str] | None = None,
        components: Sequence[str] | None = None,
        effort: str | None = None,
        weighting: str | None = None,
        prior: str | Path | None = None,
        executor: str = "serial",
        device: str = "cpu",
    ) -> None:
        self.folder, self.executor = local_folder(folder), executor
        wanted: dict[str, Any] = {
            "n_images": images,
            "calibration_images": calibration_images,
            "calibration_steps": calibration_steps,
            "reference_images": reference_images,
            "rates": None if rates is None else tuple(float(rate) for rate in rates),
            "seed": seed,
            "extractor": extractor,
            "reference": None if reference is None else str(Path(reference).resolve()),
            **{name: None if given is None else tuple(given) for name, given in (("exclude", exclude), ("components", components))},
            "effort": effort,
            "weighting": weighting,
        }
        if images is not None and images < 8:
            raise InputError(f"`images`: got {images}; a Fréchet distance needs 8 or more, and says little below 500")
        given = {name: value for name, value in wanted.items() if value is not None}
        if (self.folder / "run.json").exists():
            self._opened = runs.Run.open(
                self.folder, subject=_argument(model), device=device, batch_size=None if sampling is None else sampling.batch_size
            )
            self._refuse_other(given, sampling)
        elif model is None:
            raise InputError(f"`run` {folder}: holds no run (no run.json); make one with `sedaq probe`, or name its `model` in Python")
        else:
            sampling = sampling or SamplingConfig()
            settings = Settings(**given, sampling=replace(sampling, steps=sampling.steps or TEN_STEPS.steps))
            self._opened = runs.Run.begin(_argument(model), self.folder, settings, device=device)
        self._opened.use_prior(prior)

    def _refuse_other(self, given: Mapping[str, Any], sampling: SamplingConfig | None) -> None:
        pairs = [(name, getattr(self._opened.settings, name), value) for name, value in given.items()]
        for field in fields(SamplingConfig) if sampling is not None else ():
            value = getattr(sampling, field.name)
            if value is not None and field.name != "batch_size":
                pairs.append((field.name, getattr(self._opened.settings.sampling, field.name), value))
        for name, known, value in pairs:
            if known != value:
                raise runs.other_setting(self.folder / "run.json", name, known, value)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, model={self.subject.name!r})"

    @property
    def subject(self) -> Subject:
        """The model with its sampler."""
        return self._opened.subject

    @property
    def sampling(self) -> SamplingConfig:
        """How probes are sampled."""
        return self._opened.settings.sampling

    def forecast(self, configs: int = 64, *, memory: str | int | None = None) -> Forecast:
        """What probing so many plans will take, in hours, memory and disk, told from a minute of it. Nothing is written. Arguments as for `probe`."""
        from .sensitivity.probing.forecast import forecast

        return forecast(self._opened, configs, executor=self.executor, memory_bytes=_bytes(memory))

    def probe(
        self,
        configs: int = 64,
        design: str = "stratified",
        *,
        metric: str = "fid",
        tuned_steps: int | None = None,
        memory: str | int | None = None,
        max_hours: float | None = None,
    ) -> Run:
        """Encode every layer's menu and measure random plans; goes on where an earlier call stopped. Returns the run.

        Args:
            configs: plans to measure at most.
            design: which plans: stratified (random), layer, role or block (one at a time), or auto (asks for those that teach most).
            metric: what the auto design goes by; all metrics are recorded.
            tuned_steps: of tuning, after which every plan is measured; for `fit` and `search` with `tuned`.
            memory: bound on one calibration pass, a number of bytes or text such as 4GB; half of what is free by default.
            max_hours: measure only as many plans as there is time for, by `forecast`.
        """
        from .sensitivity.probing.probe import probe_run

        how: dict[str, Any] = {"design": design, "metric": metric, "tuned_steps": tuned_steps, "max_hours": max_hours}
        probe_run(self._opened, n_configs=configs, executor=self.executor, memory_bytes=_bytes(memory), **how)
        return self

    def fit(self, metric: str = "fid", *, tuned: bool = False, seed: int | None = None) -> FitResult:
        """Fit the predictor to the probes, cross-validate it beside simpler ones, and explain it.

        Args:
            metric: what to predict, any metric that the probes have. Search, verification and report follow it.
            tuned: predict what plans cost after tuning, by probes that were measured with `tuned_steps`.
        """
        from .sensitivity.predictor.fitting import FitResult, fit, predictor_folder

        return FitResult.of(fit(self._opened, metric=metric, tuned=tuned, seed=seed).summary, predictor_folder(self._opened, tuned=tuned))

    def search(self, budget: Budget, *, out: str | Path | None = None, **config: Any) -> SearchResult:
        """The best plan within a budget, which is never exceeded.

        Args:
            out: plan file to write beside plans/BITS.json in the run.
            config: fields of SearchConfig, such as pin, keep, verify, tuned.

        Example:
            >>> run.search(Budget(bits=2.0), pin={"proj_out*": "int8"}, verify=8).plan.save("plan.json")  # doctest: +SKIP
        """
        from .search.verb import search_run

        return search_run(self._opened, budget, SearchConfig(**config), executor=self.executor, out=None if out is None else Path(out))

    def front(self, bits: Sequence[float] = FRONT_BITS, **config: Any) -> list[SearchResult]:
        """A plan for every number of bits that can be reached, ascending. Keywords as in `search`."""
        from .search.verb import search_front

        return search_front(self._opened, SearchConfig(**config), bits=bits, executor=self.executor)

    def apply(
        self,
        plan: Plan | str | Path,
        out: str | Path,
        *,
        tune: TuneConfig | None = None,
        tune_images: str | Path | None = None,
        tune_buffer: str | Path | None = None,
        single_file: str | Path | None = None,
    ) -> nn.Module:
        """Write the quantized model of a plan to a diffusers folder, and load it.

        Args:
            plan: a plan or its file.
            tune: tune against the full-precision model; not at all by default.
            tune_images: folder or .npz of your own images to learn from beside the model's; none are needed.
            tune_buffer: folder that keeps what the full-precision model sampled for other tunings.
            single_file: also write the quantized denoiser to this one file, which `sedaq.load_file` reads.
        """
        from .aq.export.single_file import check_single_file, write_single_file

        if single_file is not None:
            check_single_file(Path(single_file), Path(out))
        found = plan if isinstance(plan, Plan) else Plan.load(plan)
        images, buffer = (None if path is None else Path(path) for path in (tune_images, tune_buffer))
        export.apply(
            self.subject, found, self._opened.store, out, tune=tune, tune_images=images, buffer_folder=buffer, sampling=self.sampling
        )
        if single_file is not None:
            write_single_file(Path(out), Path(single_file))
        return kept_evaluations.load_applied(self._opened, out).denoiser

    def evaluate(
        self, name: str, plan: Plan | None, *, tune_steps: int = 0, images: int = 2000, steps: int | None = None
    ) -> dict[str, Any]:
        """Apply a plan to the folder models/NAME of the run and measure it against full precision; the report shows the row.

        Args:
            name: of the row, which is read back where it was measured before.
            plan: None measures the model itself.
            steps: of sampling; the model's own by default.

        Returns:
            {name, size_bytes, bits_per_weight, tune_steps, metrics, …}, as EvaluationResult has them
        """
        return kept_evaluations.evaluate_plan(self._opened, name, plan, tune_steps=tune_steps, n_images=images, steps=steps)

    def check_folder(self, folder: str | Path) -> Plan:
        """The plan of a folder that was applied. Raises InputError for one that has none, or of another model than the run's."""
        return kept_evaluations.plan_of(self._opened, folder)

    def keep(self, name: str, result: Mapping[str, Any], folder: str | Path) -> None:
        """Keep what `sedaq.evaluate` found of a folder that was applied as a row of the report."""
        kept_evaluations.keep_evaluation(self._opened, name, result, self.check_folder(folder))

    def bench(self, bits: Sequence[float] = (2.0,), **how: Any) -> list[dict[str, Any]]:
        """The searched plan beside what others do, at equal bytes and on fresh noise. Keywords as in `search.bench.bench_search`."""
        from .search.bench import bench_search

        return bench_search(self._opened, bits=bits, executor=self.executor, **how)

    def report(self, out: str | Path | None = None, *, plan: str | Path | None = None) -> Path:
        """Write the report, report.html in the run by default. Returns its path. It is about `plan`, plans/plan.json or that of fewest bits by default."""
        from .reports.run_report import write_run_report

        return write_run_report(self._opened, *(None if path is None else Path(path) for path in (out, plan)))


def _bytes(size: str | int | None) -> int | None:
    return None if size is None else parse_size(str(size))


def _argument(model: Model | None) -> Any:
    return str(model) if isinstance(model, Path) else model


def evaluate(
    model: Model,
    against: Model | None = None,
    *,
    images: int = 2000,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    extractor: str | None = None,
    reference: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = "cpu",
) -> evaluation.EvaluationResult:
    """Metrics of a model's images, on noise that no plan was chosen by.

    Args:
        model: whatever `load` takes, or a quantized folder.
        against: the full-precision model, for paired measures on the same noise.
        reference: real images or statistics; the test set's for shipped models by default.
        weights: folder that `apply` wrote of a model of your own code, FILE.py:FUNCTION, which is then `model`.

    Example:
        >>> evaluate("small", against="mnist-dit").metrics["fid"]["value"]  # doctest: +SKIP
    """
    found = evaluation.evaluate(
        _argument(model),
        against=_argument(against),
        n_images=images,
        sampling=sampling,
        seed=seed,
        extractor=extractor,
        reference=None if reference is None else str(reference),
        weights=weights,
        device=device,
    )
    return evaluation.EvaluationResult(**found)


def inspect(
    model: Model,
    plan: Plan | str | Path | None = None,
    *,
    exclude: Sequence[str] = (),
    components: Sequence[str] = (),
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """Layers, roles, shapes, exact bytes and the formats that a heuristic names for each rate; with a plan, what it makes of every layer.

    Example:
        >>> inspect("mnist-dit")["n_layers"]
        39
    """
    planned = Plan.load(plan) if isinstance(plan, str | Path) else plan
    prompts = None if sampling is None else sampling.prompt_lines
    components = components or (planned.components if planned else ())
    subject = load(_argument(model), prompts=prompts, exclude=tuple(exclude), components=components)
    if planned is not None:
        planned.validate(subject)
    return inspection.inspect(subject, heuristic_menus(subject), planned, tokens_of(subject, sampling) if planned else None)
