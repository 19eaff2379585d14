"""sedaq apply SUBJECT plan.json --out DIR"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..aq.tuning.settings import TuneConfig
from ..errors import InputError
from ..models.sampling import SamplingConfig
from ..search.config import SearchConfig
from . import options
from .config import config_options

if TYPE_CHECKING:
    from ..aq.plans.plan import Plan
    from ..aq.tuning.tuned import Tuned


@click.command(help=f"Write the quantized model of a saved plan as a diffusers folder.\n\n{options.SUBJECT_HELP}")
@click.argument("subject")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--run", "run_folder", type=options.RunFolder(), default=None, help="Run whose encodings to use; made anew without it.")
@click.option(
    "--effort",
    default=None,
    metavar="fast|full|SECONDS",
    help="Encode with another effort than the plan's; its measured quality is dropped.",
)
@click.option(
    "--settings",
    type=click.Choice(["torchao", "quanto"]),
    default=None,
    help="Quantize nothing: write to --out, as JSON, the settings with which that library gives each layer as many bits, rounded up.",
)
@click.option(
    "--single-file",
    type=click.Path(path_type=Path),
    default=None,
    help="Also write the quantized denoiser, config and all, to this one .safetensors file, which sedaq.load_file reads.",
)
@click.option(
    "--hessian",
    default=None,
    metavar="none|FILE",
    help="Calibrate by nothing, or by a safetensors file with a matrix for each layer. Weights are then read one at a time, so that a model may be larger than memory; it cannot be tuned.",
)
@config_options(TuneConfig, "tune", prefix="tune_", defaults=("n_images",), only=("steps", "minutes", "n_images"), n_images="trajectories")
@click.option(
    "--tune-buffer",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder that keeps the trajectories for other tunings of the same model; recorded there if it is empty.",
)
@click.option(
    "--tune-images",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder or .npz of your own images to learn from beside the model's trajectories; none are needed.",
)
@config_options(SearchConfig, "inputs", only=("activations", "activation_schemes"))
@config_options(SamplingConfig, "sampling", only=("guidance", "prompts", "input_images", "input_masks", "batch_size"))
@options.together(options.exclude, options.device)
def command(
    subject: str,
    plan: Path,
    out: Path,
    run_folder: Path | None,
    effort: str | None,
    settings: str | None,
    single_file: Path | None,
    hessian: str | None,
    tune: dict[str, Any],
    tune_buffer: Path | None,
    tune_images: Path | None,
    inputs: dict[str, Any],
    sampling: dict[str, Any],
    exclude: tuple[str, ...],
    device: str,
) -> None:
    from ..aq.activations.choice import choose, described
    from ..aq.export.apply import apply, check_writable
    from ..aq.export.single_file import check_single_file, write_single_file
    from ..aq.plans.plan import Plan
    from ..progress import shown
    from ..sensitivity.plan_encodings import store_for_plan

    if "steps" in tune and "minutes" in tune:
        raise InputError("--tune-steps and --tune-minutes: give one of them")
    tunes = tune.get("steps") or "minutes" in tune
    given_of_tuning = {"--tune-trajectories": "n_images" in tune, "--tune-buffer": tune_buffer, "--tune-images": tune_images}
    if not tunes and any(given_of_tuning.values()):
        flags = " and ".join(flag for flag, given in given_of_tuning.items() if given)
        raise InputError(f"{flags}: for tuning alone; give --tune-steps or --tune-minutes, too")
    if hessian is not None and (tunes or run_folder or "activations" in inputs):
        raise InputError("--hessian: nothing is sampled then; leave out --run, --activations and what is for tuning")
    tuning, rounding = TuneConfig(**tune) if tunes else None, SearchConfig(**inputs)
    given = SamplingConfig(**sampling)
    loaded_plan = Plan.load(plan)
    if settings is not None:
        return _write_settings(subject, loaded_plan, settings, out, exclude)
    if single_file is not None:
        check_single_file(single_file, out)
    encodings = out.with_name(f".{out.name}.encodings")  # until `out` is written, so that an apply that was stopped goes on
    with shown():
        check_writable(out)
        chosen, store = store_for_plan(
            loaded_plan,
            subject,
            run_folder,
            encodings,
            effort=effort,
            exclude=exclude,
            sampling=given,
            device=device,
            hessian=hessian,
            mapped=hessian is not None,
        )
        recorded = store.sampling if given.guidance is None else replace(store.sampling, guidance=given.guidance)
        if rounding.activations is not None:
            kept, schemes = store.folder / "activations", rounding.activation_schemes
            rounded = choose(store.subject, rounding.activations, schemes=schemes, keep_in=kept, sampling=recorded, seed=store.seed)
            chosen = chosen.with_activations(store.subject, rounded)
        parts = apply(
            store.subject,
            chosen,
            store,
            out,
            tune=tuning,
            tune_images=tune_images,
            buffer_folder=tune_buffer,
            sampling=recorded,
        )
        if single_file is not None:
            write_single_file(out, single_file)
        shutil.rmtree(encodings, ignore_errors=True)  # with a run, there are none
    click.echo(f"{out}: {chosen.size_bytes:,} bytes, {chosen.bits_per_weight:.3f} bits a weight")
    if chosen.activations:
        click.echo(described(chosen.activations, len(chosen.formats)))
    for prefix, tuned in parts.items():
        _print_tuning(f"{prefix.rstrip('.')}: " if prefix else "", tuned)
    limit = chosen.budget.get("size_bytes")
    if limit is not None and chosen.size_bytes > limit:
        click.echo(
            f"that is {chosen.size_bytes - limit:,.0f} bytes above the plan's budget: ranges of rounded inputs; give --activations to `sedaq search`"
        )


def _print_tuning(component: str, tuned: Tuned) -> None:
    from ..aq.tuning.tune import SPOILT

    if tuned.losses:
        step, loss = tuned.best
        before, n_steps = tuned.losses[0][1], tuned.losses[-1][0]
        click.echo(f"{component}held-out loss {before:.5f} before tuning, {loss:.5f} after {step} of {n_steps} steps")
        if tuned.lost > SPOILT:
            click.echo(
                f"{component}{tuned.lost:.0%} of what the denoiser says is still lost, which spoils images; tune longer, or search a plan of more bits"
            )
    if tuned.ending:
        click.echo(f"{component}tuning: {tuned.ending}")


def _write_settings(subject: str, plan: Plan, library: str, out: Path, exclude: tuple[str, ...]) -> None:
    from ..aq.export.settings import SETTINGS_MARKS, bits_of_layers, settings_for
    from ..models.loading import load
    from ..outputs import check_out
    from ..storage import write_atomically

    check_out("out", out, SETTINGS_MARKS[library])
    loaded = load(subject, exclude=exclude, components=plan.components, mapped=True)
    content = settings_for(loaded, plan, library)
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
    bits = bits_of_layers(loaded, plan, library)
    weights = {layer.name: layer.n_weights for layer in loaded.layers}
    mean = sum(n * weights[name] for name, n in bits.items()) / max(1, sum(weights[name] for name in bits))
    left = len(weights) - len(bits)
    click.echo(
        f"{out}: {len(bits)} layers at {mean:.2f} bits on average, rounded up from {plan.bits_per_weight:.2f}; {left} stay as they are"
    )
