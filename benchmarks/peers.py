"""sedaq beside other quantizers at equal bytes:  python benchmarks/peers.py MODEL [METHOD …]      → results/peers_MODEL.json, ../docs/peers_MODEL.png

Methods take the weights of all Linear and convolution layers and give them back de-quantized; what they cannot quantize stays at 16 bits and counts. Each
is measured at its own defaults, then at the bytes of sedaq's searched plans. All rows share their noise, of seeds that nothing was chosen on. METHOD is a name of
peers_methods.py, or sedaq; all that are installed by default (peers_environments.py installs them). A row that was measured stays, unless its packages
have other versions now, or sedaq finds another plan. MODEL is one that sedaq ships, or one of the corpus that benchmarks/corpus.py trained.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from corpus_models import MODELS, folder_of, subject_argument
from corpus_training import CLASSIFIER
from peers_environments import FOLDER, missing, quantized_by
from peers_figure import ENDS_KEPT, draw_figure
from peers_methods import GPTQ, KMEANS, METHODS, Setting, is_end, kept_bytes, settings_within
from peers_own import cluster, gptq
from results import RESULTS
from tuned_rows import FULL, STEPS, Rows, State, uniform_plan

from sedaq.aq.export.apply import apply
from sedaq.aq.formats import AS_IS
from sedaq.aq.plans.plan import Plan, file_bytes, weight_bits
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.errors import InputError, SedaqError
from sedaq.kernels.timing import clock, interleaved_medians
from sedaq.models.loading import load
from sedaq.progress import shown
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_run
from sedaq.sensitivity.predictor.fitting import fit
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings

SEDAQ = "sedaq"
BITS, TUNED, EQUAL = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5), (1.5, 2.0, 3.0, 4.0), (2.0, 3.0, 4.0, 4.5)
KEPT = (2.0, 3.0, 4.0)  # bits of uniform plans whose input and output layers stay as they are
N_PROBES, N_VERIFIED = 36, 8  # samplings that plans are chosen by
TUNE_STEPS = 240
FIRST_SEED = 4  # of noise; tuning's settings were judged on lower ones
TIMED_STEPS, TIMED_IMAGES, REPEATS = 4, 64, 5


def opened(name: str, n_probes: int) -> Run:
    """The probed and fitted run of a model, in build/peers/NAME. Raises InputError for a model of the corpus that was not trained."""
    model = MODELS[name]
    own: dict[str, Any] = {}
    if model.training is not None:
        needed = [folder_of(name) / "model"]
        if model.training.data == "cifar":
            features = folder_of(CLASSIFIER)
            own = {"extractor": f"transformers:{features / 'classifier'}", "reference": str(features / "train.safetensors")}
            needed.append(features / "training.json")
        for path in needed:
            if not path.exists():
                raise InputError(f"{name}: there is no {path}; run `python benchmarks/corpus.py {name} --data DIR --only-train`")
    settings = Settings(n_images=model.n_images, sampling=replace(model.sampling, steps=STEPS), **own)
    run = Run.begin(subject_argument(name), FOLDER / name, settings)
    probe_run(run, n_configs=n_probes)
    fit(run)
    return run


def final(run: Run) -> Run:
    """The same run, measured against test images where its own reference is of training images."""
    if run.settings.reference is None:
        return run
    settings = replace(run.settings, reference=str(Path(run.settings.reference).with_name("test.safetensors")))
    return Run(run.folder, run.subject, settings, run.subject_argument, run.device)


def step_times(run: Run, folder: Path) -> dict[str, float]:
    """Milliseconds of a sampling step of the quantized model in `folder` on sedaq's kernels, and of the model in float, in turn."""
    argument, sampling = run.subject_argument, run.settings.sampling
    assert argument is not None
    if ".py:" in argument:
        quantized = load(argument, weights=folder)
    else:
        quantized = load(folder, quantized=True, prompts=sampling.prompt_lines)
    how = replace(sampling, steps=TIMED_STEPS, batch_size=TIMED_IMAGES)
    asked = {
        name: partial(subject.sample, how, seed=0, n_images=TIMED_IMAGES)
        for name, subject in (("step_ms", quantized), ("float_step_ms", run.subject))
    }
    return {name: ms / TIMED_STEPS for name, ms in interleaved_medians(asked, REPEATS).items()}


class Comparison:
    """The rows of one model.

    Args:
        tune_steps: of the tuned plans.
        how: of Rows: n_images, folder.
    """

    def __init__(self, name: str, *, seeds: tuple[int, ...], tune_steps: int, n_probes: int, n_verified: int, **how: Any) -> None:
        self.run, self.tune_steps, self.n_verified = opened(name, n_probes), tune_steps, n_verified
        self.weights = {layer.name: self.run.subject.weight(layer.name).clone() for layer in self.run.subject.layers}
        conditions: dict[str, Any] = {"probes": n_probes, "verified": n_verified}
        command = f"python benchmarks/peers.py {name} --images {how['n_images']} --seeds {len(seeds)}"
        if tune_steps != TUNE_STEPS:
            command += f" --tune-steps {tune_steps}"
        self.rows = Rows(final(self.run), f"peers_{name}", command, seeds, **conditions, **how)
        self.failed = False

    @cached_property
    def rest_bytes(self) -> int:
        """Of the model's file without the weights of its layers."""
        weights = {f"{layer.name}.weight" for layer in self.run.subject.layers}
        return file_bytes({name: spec for name, spec in self.run.subject.tensor_specs.items() if name not in weights})

    @cached_property
    def _n_weights(self) -> int:
        return sum(layer.n_weights for layer in self.run.subject.layers)

    def weight_error(self, found: Mapping[str, Any]) -> float:
        """‖W − Ŵ‖² / ‖W‖² over all layers."""
        error = sum(float((found[name] - weight).double().square().sum()) for name, weight in self.weights.items())
        return error / sum(float(weight.double().square().sum()) for weight in self.weights.values())

    def row(self, name: str, identity: Mapping[str, Any], make: Callable[[], tuple[State, Mapping[str, Any]]]) -> None:
        """A row, unless it is known and has all that `identity` says. One that fails is told and left out."""
        print(name, flush=True)
        with self._telling(name):
            self.rows.row(name, make, identity=identity)

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        try:
            yield
        except SedaqError as error:
            self.failed = True
            print(f"{name}: {error}", file=sys.stderr, flush=True)

    # -- sedaq -----------------------------------------------------------------------------------------------------------------------

    def full_precision(self) -> None:
        subject = self.run.subject
        bits = weight_bits(subject, {layer.name: AS_IS for layer in subject.layers})
        details = {"rival": FULL, "versions": {}, "size_bytes": file_bytes(subject.tensor_specs), "bits_per_weight": bits}
        self.row(FULL, {"versions": {}}, lambda: (nullcontext, details))

    def searched(self, bits: float) -> Plan:
        return search_run(self.run, Budget(bits=bits), SearchConfig(verify=self.n_verified)).plan

    def uniform_but_for_ends(self, bits: float) -> Plan:
        """The uniform plan, input and output layers as they are: what others get with a keep list."""
        ends = {layer.name: AS_IS for layer in self.run.subject.layers if is_end(layer)}
        return Plan.of(self.run.subject, {**uniform_plan(self.run, bits).formats, **ends}, encoding=self.run.store.identity)

    def plans(self) -> Iterator[tuple[str, Callable[[], Plan], int]]:
        """Rows of sedaq: name, plan, steps of tuning."""
        for bits in BITS:
            yield f"sedaq searched {bits:g}", partial(self.searched, bits), 0
        for bits in BITS:
            yield f"sedaq uniform {bits:g}", partial(uniform_plan, self.run, bits), 0
        for bits in KEPT:
            yield f"sedaq uniform {bits:g}, {ENDS_KEPT}", partial(self.uniform_but_for_ends, bits), 0
        for bits in TUNED if self.tune_steps else ():
            yield f"sedaq tuned {bits:g}, {self.tune_steps} steps", partial(self.searched, bits), self.tune_steps

    def made(self, name: str, plan: Plan, steps: int) -> tuple[State, dict[str, Any]]:
        """The plan's model, and what a row says of it: of a tuned one its seconds; calibration, probes and encodings are shared by all plans."""
        run = self.run
        folder = run.folder / "models" / re.sub(r"\W+", "-", name)
        tune = TuneConfig(steps=steps) if steps else None
        parts = apply(
            run.subject, plan, run.store, folder, tune=tune, buffer_folder=run.folder / "trajectories", sampling=run.settings.sampling
        )
        (tuned,) = parts.values()
        with tuned.installed(run.subject):
            error = self.weight_error({layer: run.subject.denoiser.get_submodule(layer).weight for layer in self.weights})
        kept = sum(layer.n_weights for layer in run.subject.layers if plan.formats[layer.name] == AS_IS)
        return partial(tuned.installed, run.subject), {
            "rival": SEDAQ,
            "setting": f"{name.split()[1]}{f', {ENDS_KEPT}' if name.endswith(ENDS_KEPT) else ''}",
            "versions": {},
            "size_bytes": plan.size_bytes,
            "bits_per_weight": plan.bits_per_weight,
            "plan": plan.hash,
            "probe_steps": run.settings.steps,
            "tune_steps": steps,
            **({"quantize_seconds": round(tuned.seconds, 1)} if steps and math.isfinite(tuned.seconds) else {}),
            "share_at_16_bits": kept / self._n_weights,
            "weight_error": error,
            **(step_times(run, folder) if "searched" in name else {}),
        }

    def measure_sedaq(self) -> None:
        for name, plan_of, steps in self.plans():
            with self._telling(name):
                plan = plan_of()
                self.row(name, {"plan": plan.hash}, partial(self.made, name, plan, steps))

    # -- methods ----------------------------------------------------------------------------------------------------------------------

    def quantized(self, setting: Setting) -> tuple[State, dict[str, Any]]:
        """The model with a method's weights, and what a row says of it.

        Raises SedaqError where the method stores other bytes than peers_methods.py says.
        """
        subject, layers = self.run.subject, self.run.subject.layers
        weights, sizes, seconds = self._by_us(setting) if not METHODS[setting.method].packages else quantized_by(setting, subject)
        kept = [layer for layer in layers if layer.name not in weights]
        stored = sum(sizes.values()) + sum(kept_bytes(layer) for layer in kept)
        expected = setting.weight_bytes(layers)
        if expected not in (None, stored):
            raise SedaqError(f"it stores {stored} bytes of weights, where {expected} were expected")
        weights |= {layer.name: subject.weight(layer.name).half().float() for layer in kept}
        return partial(subject.weights_replaced, weights), {
            "rival": setting.method,
            "setting": ENDS_KEPT if setting.keep_ends else "",
            **self._identity(setting.method),
            "options": dict(setting.options),
            "size_bytes": stored + self.rest_bytes,
            "bits_per_weight": 8 * stored / self._n_weights,
            "quantize_seconds": round(seconds, 1),
            "share_at_16_bits": sum(layer.n_weights for layer in kept) / self._n_weights,
            "weight_error": self.weight_error(weights),
        }

    def _by_us(self, setting: Setting) -> tuple[dict[str, torch.Tensor], dict[str, int], float]:
        """As quantized_by, of GPTQ and k-means."""
        run, options = self.run, setting.options
        layers = [layer for layer in run.subject.layers if setting.takes(layer)]
        layer_bytes = METHODS[setting.method].layer_bytes
        assert layer_bytes is not None
        sizes = {layer.name: layer_bytes(layer, options) or 0 for layer in layers}
        run.store.calibrate()
        began = clock()
        if setting.method == GPTQ:
            weights = {layer.name: gptq(run.subject.weight(layer.name), run.store.hessian(layer), **options) for layer in layers}
        else:
            assert setting.method == KMEANS
            weights = {layer.name: cluster(run.subject.weight(layer.name), **options) for layer in layers}
        return weights, sizes, clock() - began

    def measure_method(self, method: str) -> None:
        """At its defaults, then at the bytes of sedaq's searched plans."""
        known, layers = METHODS[method], self.run.subject.layers
        settings = [Setting(method, options, keep) for keep in (False, True) for options in known.defaults]
        for bits in EQUAL if known.dials else ():
            settings += settings_within(method, layers, self.searched(bits).size_bytes - self.rest_bytes)
        for name, setting in {setting.name: setting for setting in settings}.items():
            if setting.keeps_more(layers):
                self.row(name, self._identity(method), partial(self.quantized, setting))

    def _identity(self, method: str) -> dict[str, Any]:
        """What makes its rows: its packages, and of GPTQ the calibration."""
        calibration = {"calibration": self.run.store.calibration_fingerprint} if method == GPTQ else {}
        return {"versions": dict(METHODS[method].packages), **calibration}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join((SEDAQ, *METHODS)))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, choices=range(1, 10), default=3, metavar="N", help="of noise, so many")
    parser.add_argument("--tune-steps", type=int, default=TUNE_STEPS, help="of tuned plans; 0 for none")
    parser.add_argument("--probes", type=int, default=N_PROBES)
    parser.add_argument("--verify", type=int, default=N_VERIFIED, help="samplings that verify a searched plan")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder; another one than the default also gets the figure")
    arguments = parser.parse_args()
    methods = arguments.methods or [SEDAQ, *METHODS]
    if unknown := set(methods) - {SEDAQ, *METHODS}:
        parser.error(f"there is no method {sorted(unknown)[0]}; choose among {', '.join((SEDAQ, *METHODS))}")
    try:
        absent = {method: why for method in methods if method != SEDAQ and (why := missing(method)) is not None}
        for why in absent.values():
            if arguments.methods:
                raise InputError(why)
            print(why, file=sys.stderr, flush=True)
        with shown():
            compared = Comparison(
                arguments.model,
                seeds=tuple(range(FIRST_SEED, FIRST_SEED + arguments.seeds)),
                tune_steps=arguments.tune_steps,
                n_probes=arguments.probes,
                n_verified=arguments.verify,
                n_images=arguments.images,
                folder=arguments.results,
            )
            compared.full_precision()
            for method in [method for method in methods if method not in absent]:
                compared.measure_sedaq() if method == SEDAQ else compared.measure_method(method)
    except SedaqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    if not compared.rows.rows:
        sys.exit(1)  # full precision's images could not be made; that was told
    draw_figure(arguments.results, arguments.model)
    sys.exit(int(compared.failed))


if __name__ == "__main__":
    main()
