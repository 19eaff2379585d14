"""The model card of a quantized folder: what it is, what it weighs, what was measured, and the lines that load it."""

from __future__ import annotations

from ...models.subject import Subject
from ..plans.plan import Plan, model_file_bytes

CARD_FILE = "README.md"
_HEADER = "---\nlibrary_name: diffusers\ntags:\n- sedaq\n- quantized\n---\n\n"


def card_text(subject: Subject, plan: Plan) -> str:
    """All of README.md. A card that the full-precision folder has stays, licence and all; what sedaq did stands below it."""
    own = subject.folder / CARD_FILE if subject.folder is not None else None
    before = own.read_text(encoding="utf-8").rstrip() + "\n\n" if own is not None and own.exists() else _HEADER
    part = f"its {', '.join(subject.components)}" if subject.components else "its weights"
    share = plan.size_bytes / model_file_bytes(subject)
    lines = [
        f"# {subject.name}, quantized",
        "",
        f"sedaq gave {part} {plan.bits_per_weight:.3f} bits a weight: {plan.size_bytes:,} bytes, {share:.1%} of the full-precision file.",
        *_measured(plan),
        "",
        *(f"    {line}" for line in _loading(subject)),
        "",
        "`quantization_plan.json` has the format of every layer.",
    ]
    return before + "\n".join(lines) + "\n"


def _measured(plan: Plan) -> list[str]:
    """The metrics of the plan as they were measured while it was chosen, which tuning after that changes."""
    if plan.measured is None:
        return []
    metrics = plan.measured["metrics"]
    named = (("fid", "Fréchet distance"), ("psnr", "PSNR to full precision, dB"))
    known = [f"{text} {metrics[name]['value']:.4g} ± {metrics[name]['se']:.2g}" for name, text in named if name in metrics]
    if not known:
        return []
    steps = f", {plan.measured['steps']} steps" if plan.measured["steps"] else ""
    return ["", f"Measured while it was chosen, before any tuning: {'; '.join(known)} ({plan.measured['n_images']} images{steps})."]


def _loading(subject: Subject) -> list[str]:
    if subject.source:
        return ["import sedaq", f'subject = sedaq.load("{subject.source.rpartition("/")[2]}", weights="FOLDER")']
    if subject.components:  # the dtype, for text encoders that are stored in 16 bits would load in them, and the rest in 32
        load = 'model = DiffusionPipeline.from_pretrained("FOLDER", dtype=torch.float32)'
        return ["import sedaq  # makes diffusers know the format", "import torch", "from diffusers import DiffusionPipeline", load]
    name = type(subject.denoiser).__name__
    return ["import sedaq  # makes diffusers know the format", f"from diffusers import {name}", f'model = {name}.from_pretrained("FOLDER")']
