"""A run: one subject, the settings that its numbers depend on, and the folder that holds all that was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..aq.formats import Format
from ..aq.plans.menu import Entry, entry
from ..aq.plans.menu_choice import measured_menus
from ..aq.plans.store import EncodingStore
from ..errors import DamagedError, InputError, UntrustedError
from ..models.calibration import images_needed, steps_needed
from ..models.file_hashes import first_difference, hashes_of
from ..models.loading import SHIPPED, may_be_reopened
from ..models.outline import OutlinedSubject, outline_of
from ..models.single_files import MARK, split
from ..models.subject import Subject
from ..remote import url_of
from ..runtime.executors import parse_executor
from ..runtime.journal import Journal
from ..runtime.owner import run_record
from ..storage import local_folder, read_json, write_json
from .settings import Settings

if TYPE_CHECKING:
    from .prior.model import LearntPrior

PROBE, TUNED_PROBE = "probe", "tuned probe"  # purposes of what the journal holds: plans, and plans after a short tuning
OUTLINE_FILE = "layers.json"


def probe_journal(folder: Path) -> Journal:
    """All measurements of the run in a folder: its probes, and plans measured for other purposes."""
    return Journal(folder / "probes.jsonl", "probe")


class Run:
    """An open run folder.

    Attributes:
        subject: what is quantized; of a run that is opened without naming it, an outline, and the model itself is loaded when something is sampled or
            encoded.
        subject_argument: by which other processes load it, None for a Subject made in Python.
        prior: what other models taught, instead of what is known on this machine. Not kept, and not told to workers, which only measure.
    """

    def __init__(self, folder: Path, subject: Subject, settings: Settings, subject_argument: str | None, device: str) -> None:
        self.folder, self.subject, self.settings = folder, subject, settings
        self.subject_argument, self.device = subject_argument, device
        self.prior: LearntPrior | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it is opened from, for workers in other processes."""
        batch_size = self.settings.sampling.batch_size
        return partial(
            Run.open,
            url_of(self.folder) or str(self.folder.absolute()),
            subject=self.subject_argument,
            device=self.device,
            batch_size=batch_size,
        ), ()

    def use_prior(self, path: str | Path | None) -> None:
        """Go by a prior's file, or by the one beside a corpus; None: by what is known. Raises InputError where there is none."""
        if path is not None:
            from .prior.use import load_prior

            self.prior = load_prior(Path(path))

    @cached_property
    def store(self) -> EncodingStore:
        """The encodings of all layers that were made so far."""
        if self.settings.calibration_images is None:
            self.settings = replace(self.settings, calibration_images=images_needed(self.subject, self.settings.sampling))
        settings, reopen = self.settings, partial(getattr, self, "store")
        how: dict[str, Any] = {"effort": settings.effort, "seed": settings.seed, "given": settings.sampling, "reopen": reopen}
        return EncodingStore(self.subject, self.folder, calibration=settings.calibration, **how)

    @classmethod
    def begin(cls, subject: str | Subject, folder: str | Path, settings: Settings, *, device: str = "cpu") -> Run:
        """A new run, not yet on disk, or the one that the folder holds.

        Raises InputError where that one has other settings or another subject.
        """
        folder = local_folder(folder)
        path = folder / "run.json"
        found = run_record(folder) if path.exists() else None
        if found is not None:
            known = {name: getattr(settings, name) or found["settings"].get(name) for name in ("calibration_images", "calibration_steps")}
            settings = replace(settings, old_batch_size=found["settings"].get("batch_size"), **known)
        loaded = settings.load(subject, device)
        if found is None:
            settings = replace(settings, calibration_steps=settings.calibration_steps or steps_needed(loaded, settings.sampling))
        else:
            loaded.adopt(found["subject"]["fingerprint"])
            _refuse_other_files(path, found["subject"], loaded)
        run = cls(folder, loaded, settings, None if isinstance(subject, Subject) else _from_anywhere(str(subject)), device)
        if found is not None:
            _refuse_other(path, found, run.identity)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"`run` {folder}: is neither empty nor a run; choose another folder")
        return run

    @cached_property
    def menus(self) -> dict[str, tuple[Entry, ...]]:
        """The menu of every layer, measured now where it has not been."""
        return measured_menus(self.store, self.settings.rates)

    @property
    def identity(self) -> dict[str, Any]:
        """What run.json holds of that which a run keeps."""
        self.store  # noqa: B018  says how many images calibration takes
        return {
            "subject": {
                "name": self.subject.name,
                "fingerprint": self.subject.fingerprint,
                "model_fingerprint": self.subject.model_fingerprint,
                "argument": self.subject_argument,
                "files": _other_files(self.subject),
            },
            "settings": self.settings.to_dict(),
        }

    def write(self) -> None:
        """Put the run on disk, unless it is there; the argument by which its subject is loaded is kept up to date."""
        path = self.folder / "run.json"
        if path.exists() and self.subject_argument is not None:
            content = read_json(path, "run")
            if content["subject"]["argument"] != self.subject_argument:
                write_json(path, "run", {**content, "subject": {**content["subject"], "argument": self.subject_argument}})
        if not path.exists():
            batch_size = self.settings.sampling.batch_size
            write_json(path, "run", self.identity | ({"batch_size": batch_size} if batch_size else {}))
        if not (self.folder / OUTLINE_FILE).exists():
            write_json(self.folder / OUTLINE_FILE, "outline", outline_of(self.subject))

    @classmethod
    def open(cls, folder: str | Path, *, subject: str | Subject | None = None, device: str = "cpu", batch_size: int | None = None) -> Run:
        """Open an existing run.

        Args:
            subject: the model, which must have the run's fingerprint, wherever it lies now. A run that is opened without it loads its model only if it
                is one that sedaq ships, or a folder without code.
            batch_size: to sample with.
        """
        folder = local_folder(folder)
        if not (folder / "run.json").exists():
            raise InputError(f"`run` {folder}: holds no run (no run.json); make one with `sedaq probe`")
        content = run_record(folder)
        settings = Settings.from_dict(content["settings"], batch_size or content.get("batch_size"))
        known, note = content["subject"], content["subject"]["argument"]

        def checked(loaded: Subject) -> Subject:
            if not loaded.adopt(known["fingerprint"]):
                raise InputError(
                    f"`run` {folder}: was made for {known['name']} with fingerprint {known['fingerprint']}, the subject now has {loaded.fingerprint}; start a new run"
                )
            _refuse_other_files(folder / "run.json", known, loaded)
            return loaded

        def reopened() -> Subject:
            if note is None:
                raise UntrustedError(f"`run` {folder}: its subject was made in Python; pass the Subject again")
            if not may_be_reopened(note):
                raise UntrustedError(
                    f"`run` {folder}: its model is {note}, which a file may not have run or downloaded; if you trust it, pass `subject` {note}"
                )
            return checked(settings.load(note, device))

        if subject is not None:
            argument = None if isinstance(subject, Subject) else _from_anywhere(str(subject))
            run = cls(folder, checked(settings.load(subject, device)), settings, argument, device)
            _outlined(folder, known["fingerprint"], reopened)  # one that is damaged goes, and is written anew
        else:
            run = cls(folder, _outlined(folder, known["fingerprint"], reopened) or reopened(), settings, note, device)
        run.write()
        return run

    def entry(self, layer: str, format: Format) -> Entry:
        """The menu entry of a format, or a new one for a format that is not on the menu."""
        return next((e for e in self.menus[layer] if e.format == format), None) or entry(self.subject, self.subject.layer(layer), format)

    def fill_store(self, memory_bytes: int | None = None, *, executor: str = "serial") -> None:
        """Measure the menu of every layer and encode it in every format of it, on an executor; `memory_bytes` bounds a calibration pass."""
        self.store.calibrate(memory_bytes)
        with self.store.workers_of(parse_executor(executor)):
            self.store.fill([(layer, e.format) for layer in self.subject.layers for e in self.menus[layer.name]])


def _outlined(folder: Path, fingerprint: str, load: Callable[[], Subject]) -> Subject | None:
    """The outline of a run's subject; None where it is missing, damaged or another's, as in runs of version 0.1.0."""
    if not (folder / OUTLINE_FILE).exists():
        return None
    try:
        found = OutlinedSubject(read_json(folder / OUTLINE_FILE, "outline"), load)
    except DamagedError:
        found = None
    if found is None or found.fingerprint != fingerprint:
        (folder / OUTLINE_FILE).unlink()
        return None
    return found


def _from_anywhere(argument: str) -> str:
    """The SUBJECT argument, its path made absolute if it has one: later verbs may be called from another folder."""
    if MARK in argument:
        return ":".join(str(path.absolute()) for path in split(argument))  # links stay: what they lead to may have another suffix
    path = argument.rpartition(":")[0] if ".py:" in argument else argument
    return str(Path(argument).resolve()) if argument not in SHIPPED and Path(path).exists() else argument


def _other_files(subject: Subject) -> dict[str, str]:
    """Hashes of what images of a folder depend on beside what is quantized: scheduler, autoencoder, text encoders."""
    return {} if subject.folder is None else hashes_of(subject.folder, subject.components or ("",))


def _refuse_other_files(path: Path, known: dict[str, Any], loaded: Subject) -> None:
    """Runs of earlier versions do not say which files they were begun with."""
    if known.get("files") and loaded.folder is not None:
        name = first_difference(known["files"], _other_files(loaded))
        if name is not None:
            raise InputError(
                f"{path}: was begun with another {name} than {loaded.folder} has now, so that images would differ; put it back, or start a new run"
            )


def _refuse_other(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found["subject"]["fingerprint"] != wanted["subject"]["fingerprint"]:
        raise InputError(
            f"{path}: holds a run of {found['subject']['name']} with other weights or conditions; choose another folder for `run`"
        )
    differing: Sequence[str] = [name for name, value in wanted["settings"].items() if found["settings"].get(name) != value]
    if differing:
        raise other_setting(path, differing[0], found["settings"].get(differing[0]), wanted["settings"][differing[0]])


def other_setting(path: Path, name: str, known: Any, given: Any) -> InputError:
    """What to raise where a run is to go on with a setting that changes its numbers."""
    return InputError(
        f"{path}: was begun with {name} = {known!r}, not {given!r}; use the same, or another folder for `run` "
        "(design, number of plans, executor, device, memory, hours and batch size may change)"
    )
