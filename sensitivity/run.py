"""A run: one subject, the settings that its numbers depend on, and the folder that holds all that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..aq.formats import Format
from ..aq.plans.menu import RATES, Entry, entry
from ..aq.plans.menu_choice import measured_menus
from ..aq.plans.plan import Plan
from ..aq.plans.store import EncodingStore
from ..errors import InputError
from ..models.loading import SHIPPED, load
from ..models.subject import Subject
from ..storage import read_json, write_json


@dataclass(frozen=True)
class Settings:
    """Everything that changes a run's numbers. A run keeps the settings that it began with."""

    seed: int = 0
    n_images: int = 512  # a probe
    steps: int = 10  # of a probe
    extractor: str | None = None  # None: the subject's own
    reference: str | None = None  # None: the shipped training statistics, else full-precision images made with other noise
    guidance: float | None = None
    prompts: str | None = None  # file with one prompt a line
    batch_size: int | None = None  # of sampling; None: the sampler's own
    exclude: tuple[str, ...] = ()
    rates: tuple[float, ...] = RATES
    effort: str = "fast"
    calibration_images: int = 64
    weighting: str = "uniform"  # of the calibration's timesteps

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings of the subject's sample function."""
        return sampling_settings(self.guidance, self.batch_size)


def sampling_settings(guidance: float | None, batch_size: int | None) -> dict[str, Any]:
    """Settings that were given, for samplers need not know those that were not."""
    return {name: value for name, value in (("guidance", guidance), ("batch_size", batch_size)) if value is not None}


def read_prompts(path: str | None) -> list[str] | None:
    if path is None:
        return None
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {path}: cannot be read; give a text file with one prompt a line") from error
    if not lines:
        raise InputError(f"--prompts {path}: holds no prompts; give a text file with one prompt a line")
    return lines


class Run:
    """An open run folder.

    `subject_argument` is kept so that later verbs need --run alone; it is None for a Subject made in Python, which must be passed again.
    """

    def __init__(self, folder: Path, subject: Subject, settings: Settings, subject_argument: str | None, device: str) -> None:
        self.folder, self.subject, self.settings = folder, subject, settings
        self.subject_argument, self.device = subject_argument, device
        calibration = {
            "seed": settings.seed,
            "n_images": settings.calibration_images,
            "steps": settings.steps,
            "weighting": settings.weighting,
            **settings.sampling,
        }
        self.store = EncodingStore(subject, folder, calibration=calibration, effort=settings.effort, seed=settings.seed)

    @classmethod
    def begin(cls, subject: str | Subject, folder: str | Path, settings: Settings, *, device: str = "cpu") -> Run:
        """A new run, not yet on disk, or the one that the folder holds.

        Raises InputError where that one has other settings or another subject.
        """
        folder = Path(folder)
        loaded = load(subject, prompts=read_prompts(settings.prompts), exclude=settings.exclude, device=device)
        run = cls(folder, loaded, settings, None if isinstance(subject, Subject) else _from_anywhere(str(subject)), device)
        path = folder / "run.json"
        if path.exists():
            _refuse_other(path, read_json(path, "run"), run.identity)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--run {folder}: is neither empty nor a run; choose another folder")
        return run

    @cached_property
    def menus(self) -> dict[str, tuple[Entry, ...]]:
        """The menu of every layer, measured now where it has not been."""
        return measured_menus(self.store, self.settings.rates)

    @property
    def identity(self) -> dict[str, Any]:
        """What run.json holds."""
        return {
            "subject": {"name": self.subject.name, "fingerprint": self.subject.fingerprint, "argument": self.subject_argument},
            "settings": {**asdict(self.settings), "exclude": list(self.settings.exclude), "rates": list(self.settings.rates)},
        }

    def write(self) -> None:
        """Put the run on disk, unless it is there."""
        if not (self.folder / "run.json").exists():
            write_json(self.folder / "run.json", "run", self.identity)

    @classmethod
    def open(cls, folder: str | Path, *, subject: str | Subject | None = None, device: str = "cpu") -> Run:
        """Open an existing run."""
        folder = Path(folder)
        if not (folder / "run.json").exists():
            raise InputError(f"--run {folder}: holds no run (no run.json); make one with `sedaq probe SUBJECT --run {folder}`")
        content = read_json(folder / "run.json", "run")
        argument = subject if subject is not None else content["subject"]["argument"]
        if argument is None:
            raise InputError(f"--run {folder}: its subject was made in Python; pass the Subject again")
        known = {field.name for field in fields(Settings)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["settings"].items() if name in known
        }
        settings = Settings(**values)
        loaded = load(argument, prompts=read_prompts(settings.prompts), exclude=settings.exclude, device=device)
        if loaded.fingerprint != content["subject"]["fingerprint"]:
            made_for = content["subject"]
            raise InputError(
                f"--run {folder}: was made for {made_for['name']} with fingerprint {made_for['fingerprint']}, the subject now has {loaded.fingerprint}; start a new run"
            )
        return cls(folder, loaded, settings, content["subject"]["argument"], device)

    def entry(self, layer: str, format: Format) -> Entry:
        """The menu entry of a format, or a new one for a format that is not on the menu."""
        return next((e for e in self.menus[layer] if e.format == format), None) or entry(self.subject, self.subject.layer(layer), format)

    def fill_store(self, memory_bytes: int | None = None) -> None:
        """Encode every layer in every format of its menu; `memory_bytes` bounds a calibration pass."""
        self.store.calibrate(memory_bytes)
        self.store.fill([(layer, e.format) for layer in self.subject.layers for e in self.menus[layer.name]])


def _from_anywhere(argument: str) -> str:
    """The SUBJECT argument, its path made absolute if it has one: later verbs may be called from another folder."""
    path = argument.rpartition(":")[0] if ".py:" in argument else argument
    return str(Path(argument).resolve()) if argument not in SHIPPED and Path(path).exists() else argument


def _refuse_other(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found["subject"]["fingerprint"] != wanted["subject"]["fingerprint"]:
        raise InputError(
            f"{path}: holds a run of {found['subject']['name']} with other weights or conditions; choose another folder for --run"
        )
    differing: Sequence[str] = [name for name, value in wanted["settings"].items() if found["settings"].get(name) != value]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path}: was begun with {name} = {found['settings'].get(name)!r}, not {wanted['settings'][name]!r}; use the same, or another folder for --run"
        )


def store_for_plan(
    plan: Plan,
    subject: str | Subject,
    run: Path | None,
    scratch: Path,
    *,
    effort: str | None = None,
    exclude: tuple[str, ...] = (),
    guidance: float | None = None,
    prompts: str | None = None,
    device: str = "cpu",
) -> tuple[Plan, EncodingStore]:
    """The encodings that a plan was made with: those of its run, or made anew in `scratch` by what the plan's `encoding` field says.

    With another `effort` the plan comes back without what was predicted and measured, for that no longer holds.
    """
    if run is not None:
        opened = Run.open(run, subject=subject, device=device)
        folder, loaded = opened.folder, opened.subject
    else:
        folder, loaded = scratch, load(subject, prompts=read_prompts(prompts), exclude=exclude, device=device)
    plan.validate(loaded)
    try:
        made = EncodingStore(
            loaded,
            folder,
            calibration=plan.encoding["calibration_settings"],
            effort=effort or plan.encoding["effort"],
            seed=plan.encoding["seed"],
        )
    except KeyError as error:
        raise InputError(f"the plan's field 'encoding' lacks {error}; search again") from error
    if effort is not None and effort != plan.encoding["effort"]:
        plan = replace(plan, encoding=made.identity, predicted=None, measured=None)
    return plan, made
