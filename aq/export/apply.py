"""From a plan to a folder that diffusers loads."""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ...kernels import cost_model
from ...models.folders import SUBJECT_FILE, copies_of, files_of, is_of_transformers, weights_file
from ...models.images import all_images
from ...models.layers import tied_layers
from ...models.manifest import MANIFEST_FILE, foreign_to, manifest_bytes, write_manifest
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...outputs import write_folder
from ...runtime.owner import owner, read_own_records
from ...runtime.status import telling_in
from ...runtime.tasks import locked
from ...storage import SCHEMA, append_record, json_bytes, write_json
from ..activations.calibration import ranged
from ..activations.quantizer import N_BUCKETS, ActivationQuantizers
from ..encoding import Encoding
from ..plans.plan import SAFETENSORS_METADATA, Plan, tensor_specs
from ..plans.store import EncodingStore, StoredEncodings
from ..tensor_files import write_tensors_in_turn
from ..tuning.components import together, tune_components
from ..tuning.settings import TuneConfig
from ..tuning.tuned import Tuned
from .card import CARD_FILE, card_text
from .state import QuantizedState

PLAN_FILE = "quantization_plan.json"
MAX_DIGITS = 1 / 3 + 1e3  # no number of a config has a longer text
_BESIDE = ("scheduler_config.json", SUBJECT_FILE)  # what a bare denoiser's folder has beside config and weights
TUNINGS_FILE = "tunings.jsonl"  # of a run's folder


def assemble(subject: Subject, plan: Plan, store: EncodingStore) -> Mapping[str, Encoding]:
    """The encoding of every layer of the plan, read when it is asked for; missing ones are made."""
    store.fill([(layer, plan.formats[layer.name]) for layer in subject.layers])
    return StoredEncodings(store, plan.formats)


def apply(
    subject: Subject,
    plan: Plan,
    store: EncodingStore,
    out: str | Path,
    *,
    tune: TuneConfig | None = None,
    tune_images: Path | None = None,
    buffer_folder: Path | None = None,
    sampling: SamplingConfig | None = None,
) -> dict[str, Tuned]:
    """Write `subject`, quantized by `plan` and tuned, to the folder `out`: a pipeline if it came from one, else a bare denoiser.

    A tuning that is killed goes on when it is begun again: what it needs lies in a hidden folder beside `out` until `out` is written. The way
    of its loss is kept in tunings.jsonl of the store's folder.

    Args:
        store: of the run that the plan came from, so that its encodings are used.
        tune: how to tune; None leaves the encodings as they are.
        tune_images: folder or .npz of a user's own images to learn from beside trajectories.
        buffer_folder: where the replay buffer stays for other tunings of the same model.
        sampling: how the trajectories that tuning learns from are sampled, but for the number of steps, which `tune` has.

    Returns:
        what was tuned, by component as `tune_components` has it; under "" what was encoded where nothing was to be tuned.

    Raises:
        InputError: for a plan of another model, a folder that is in the way or cannot be written.
    """
    plan.validate(subject)
    out = Path(out).resolve()
    check_writable(out)
    _refuse_strays(subject, out)
    if subject.folder is not None and subject.folder.resolve() in out.parents:
        raise InputError(f"`out` {out}: lies inside the folder of {subject.name}, which is copied; choose a folder beside it")
    with telling_in(store.folder, "apply"):
        encodings, inputs = assemble(subject, plan, store), ranged(subject, plan.activations, store.seed, sampling)
        if tune is None or (tune.steps == 0 and tune.minutes is None):
            tuned = Tuned(encodings, {}, inputs=inputs)
            save_folder(subject, plan, tuned, out)
            return {"": tuned}
        images = None if tune_images is None else all_images(tune_images, subject.shape_of(sampling or SamplingConfig()))
        return _apply_tuned(
            subject, plan, store, out, encodings, inputs, tune=tune, images=images, buffer_folder=buffer_folder, sampling=sampling
        )


def _apply_tuned(
    subject: Subject,
    plan: Plan,
    store: EncodingStore,
    out: Path,
    encoded: Mapping[str, Encoding],
    inputs: ActivationQuantizers | None,
    *,
    tune: TuneConfig,
    images: torch.Tensor | None,
    buffer_folder: Path | None,
    sampling: SamplingConfig | None,
) -> dict[str, Tuned]:
    folder, encodings = out.with_name(f".{out.name}.tuning"), dict(encoded)
    kept: dict[str, Path | None] = {"folder": folder, "buffer_folder": buffer_folder, "keep_in": store.folder / "tuned"}
    parts = tune_components(subject, encodings, tune, inputs=inputs, images=images, sampling=sampling, **kept)
    save_folder(subject, plan, together(parts, encodings, inputs), out)
    for prefix, tuned in parts.items():
        _keep_tuning(store.folder / TUNINGS_FILE, _tuning_record(plan, f"{out.name} {prefix}".rstrip(" ."), tuned, tune))
    shutil.rmtree(folder, ignore_errors=True)  # a tuning that ended at once has made none
    return parts


def _keep_tuning(path: Path, record: dict[str, Any]) -> None:
    """Once: whoever was stopped after this comes here again."""
    with locked(path):  # another process may tune, too
        known = [{**found, "seconds": None} for found in read_own_records(path, "tuning") if found["name"] == record["name"]]
        if {**record, "seconds": None} not in known[-1:]:
            append_record(path, "tuning", {**record, **owner(path.parent)})


def _tuning_record(plan: Plan, name: str, tuned: Tuned, settings: TuneConfig) -> dict[str, Any]:
    losses = [[step, loss if math.isfinite(loss) else None] for step, loss in tuned.losses]
    chosen = {name: value for name, value in vars(settings).items() if name not in ("stages", "optimizer_reset")}
    details = {
        "settings": {**chosen, "forgetting": settings.optimizer_reset, "stages": [list(stage) for stage in settings.stages]},
        "ending": tuned.ending,
        "seconds": round(tuned.seconds, 1) if math.isfinite(tuned.seconds) else None,
    }
    return {"name": name, "plan_hash": plan.hash, "held_out_losses": losses, **details}


def check_writable(out: Path) -> None:
    """Raise InputError if `out` holds anything but an earlier result, or cannot be made."""
    earlier = (out / PLAN_FILE).is_file() or (out.is_dir() and any(out.glob(f"*/{PLAN_FILE}")))
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not earlier:
        raise InputError(f"`out` {out}: exists and is not a folder that sedaq wrote; choose another name")
    parent = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    try:
        probe = parent / f".sedaq-{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"`out` {out}: cannot be written ({error.strerror}); choose a folder that you may write to") from error


def _refuse_strays(subject: Subject, out: Path) -> None:
    """Raise InputError where an earlier result holds what sedaq did not write as it is, and would be lost."""
    if (out / MANIFEST_FILE).exists():
        stray = foreign_to(out)
    else:  # of an earlier version
        known = _names(subject) | {*_BESIDE, PLAN_FILE}
        if subject.components and subject.folder is not None:  # under the names of their variants
            known |= {str(path.relative_to(subject.folder)) for path in files_of(subject.folder, subject.components)}
        found = (str(path.relative_to(out)) for path in sorted(out.rglob("*")) if path.is_file())
        stray = next((name for name in found if name not in known), None)
    if stray is not None:
        raise InputError(f"`out` {out}: holds {stray}, which sedaq did not write and would delete; move it away, or choose another name")


def _names(subject: Subject) -> set[str]:
    """Of all files that apply writes for a subject, but for the manifest."""
    copied = {CARD_FILE}
    if subject.components:
        assert subject.folder is not None
        copied |= {name for name, _, _ in copies_of(subject.folder, subject.components)}
    elif subject.folder is not None:
        copied |= {name for name in _BESIDE if (subject.folder / name).exists()}
    written = {
        str(_folder_of(part, Path()) / name) for part in subject.parts.values() for name in ("config.json", weights_file(part.denoiser))
    }
    return copied | written | {str((Path() if len(subject.parts) > 1 else _folder_of(subject, Path())) / PLAN_FILE)}


def save_folder(subject: Subject, plan: Plan, tuned: Tuned, out: Path) -> None:
    """Write the folder beside `out` and rename it, so that `out` is whole or absent."""

    def fill(folder: Path) -> None:
        if subject.components:
            assert subject.folder is not None
            for name, path, content in copies_of(subject.folder, subject.components):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, folder / name)
                if content is not None:
                    (folder / name).write_bytes(content)
        elif subject.folder is not None:
            for name in _BESIDE:
                if (subject.folder / name).exists():
                    shutil.copy2(subject.folder / name, folder / name)
        elif subject.source:  # by which the folder can be sampled like a model of diffusers
            write_json(folder / SUBJECT_FILE, "subject", {"source": subject.source})
        _write_components(subject, plan, tuned, folder)
        (folder / CARD_FILE).write_text(card_text(subject, plan), encoding="utf-8")
        write_manifest(folder)

    write_folder(out, fill, before_replacing=lambda: _refuse_strays(subject, out))


def _folder_of(part: Subject, out: Path) -> Path:
    """Where a component's files go."""
    return out / part.components[0] if part.components else out


def pipeline_bytes(subject: Subject, plan: Plan) -> int:
    """Of all files that apply writes for a subject that is a pipeline, at most, but for what the kernels' cost model differs in length from machine to machine."""
    assert subject.folder is not None
    copies = copies_of(subject.folder, subject.components)
    copied = sum(path.stat().st_size if content is None else len(content) for name, path, content in copies if name != CARD_FILE)
    edges = (MAX_DIGITS,) * (N_BUCKETS - 1) if any(choice.is_static for choice in plan.activations.values()) else ()
    configs = [_config_text(part, prefix, plan, edges).encode() for prefix, part in subject.parts.items()]
    return (
        copied
        + plan.size_bytes
        + manifest_bytes(_names(subject))
        + sum(map(len, (*configs, json_bytes("plan", plan.to_json()), card_text(subject, plan).encode())))
    )


def _config_text(part: Subject, prefix: str, plan: Plan, edges: tuple[float, ...]) -> str:
    """config.json of one component, whose layers begin with `prefix` in the plan."""
    module: Any = part.denoiser
    config = json.loads(module.to_json_string()) if hasattr(module, "to_json_string") else {}
    if is_of_transformers(module):
        config = json.loads(module.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    own = {name.removeprefix(prefix): format for name, format in plan.formats.items() if name.startswith(prefix)}
    layers = quantized_layers(own)
    tied = tied_layers(part.ties, layers)
    config["quantization_config"] = {
        "quant_method": "sedaq",
        "schema": SCHEMA,
        "fingerprint": part.fingerprint,
        "layers": layers,
        "kernel_costs": cost_model.to_store(),
        "activations": {name.removeprefix(prefix): vars(choice) for name, choice in plan.activations.items() if name.startswith(prefix)},
        "timestep_edges": list(edges),
        **({"tied": tied} if tied else {}),
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _write_components(subject: Subject, plan: Plan, tuned: Tuned, out: Path) -> None:
    edges = tuned.inputs.edges if tuned.inputs else ()
    state = QuantizedState(subject, tuned)
    spec, size = tensor_specs(subject, plan.formats, plan.activations), 0
    for prefix, part in subject.parts.items():
        folder = _folder_of(part, out)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(_config_text(part, prefix, plan, edges), encoding="utf-8")
        names = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
        specs = {name: spec[full] for name, full in names.items()}
        path = folder / weights_file(part.denoiser)
        write_tensors_in_turn(path, specs, lambda name, names=names: state[names[name]], SAFETENSORS_METADATA)  # type: ignore[misc]
        size += path.stat().st_size
    plan.save((out if len(subject.parts) > 1 else _folder_of(subject, out)) / PLAN_FILE)
    if size != plan.size_bytes:
        raise InputError(f"{out}: the weights have {size} bytes where the plan says {plan.size_bytes}; please report this with the plan")


def quantized_layers(formats: Mapping[str, Any]) -> dict[str, str]:
    """Format text of each layer that holds codes."""
    return {name: str(format) for name, format in formats.items() if format.kind != "asis"}
