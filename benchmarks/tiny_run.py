"""A run of a tiny model with every kind of file in it, and the command line called in process: what faults.py, hostile.py and full_disk.py harm.

python benchmarks/tiny_run.py FOLDER      keeps such a run in FOLDER, as tests/data holds one of each schema
"""

from __future__ import annotations

import io
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from sklearn.ensemble import RandomForestRegressor

from sedaq.cli.main import main
from sedaq.kernels.timing import clock
from sedaq.models.folders import SUBJECT_FILE
from sedaq.sensitivity.explanation import explanation
from sedaq.sensitivity.predictor import cross_validation
from sedaq.storage import read_json, write_json

SETTINGS = (
    "--images",
    "16",
    "--steps",
    "2",
    "--rates",
    "2,4",
    "--calibration-images",
    "8",
    "--calibration-steps",
    "2",
    "--reference-images",
    "32",
)
HANGS = 30  # seconds after which a call is ended


@dataclass(frozen=True)
class Said:
    """What a call of the command line came to."""

    code: int
    out: str
    err: str  # what it printed on stderr, and warnings of the log
    seconds: float

    @property
    def words(self) -> str:
        """The message and the warnings, without what the progress shows."""
        return "\n".join(line for line in self.err.splitlines() if "━" not in line and "left)" not in line)


class _Hung(BaseException):
    pass


class _Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    """The warnings of sedaq while the block runs."""
    handler, logger = _Collected(), logging.getLogger("sedaq")
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)


def call(*words: object, limit: int = HANGS) -> Said:
    """One command in this process. Code -1: it did not end; -2: what it raised was caught by nobody."""

    def ring(*_: Any) -> None:
        raise _Hung

    out, err, start = io.StringIO(), io.StringIO(), clock()
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(limit)
    try:
        with redirect_stdout(out), redirect_stderr(err), listening() as log:
            code = main([str(word) for word in words])
    except _Hung:
        code = -1
    except BaseException as error:
        code = -2
        err.write(f"uncaught {type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Said(code, out.getvalue(), "\n".join([err.getvalue().strip(), *log]).strip(), clock() - start)


@contextmanager
def less_repetition() -> Iterator[None]:
    """Fits repeat less while the block runs; the code is the same."""
    changed: list[tuple[Any, str, Any]] = [
        (cross_validation, "REPEATS", 1),
        (cross_validation, "BOOTSTRAPS", 20),
        (cross_validation, "RandomForestRegressor", lambda _, **settings: RandomForestRegressor(5, **settings)),
        (explanation, "N_DRAWS", 10),
        (explanation, "N_SPLITS", 2),
    ]
    before = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changed, before, strict=True):
            setattr(module, name, value)


def save_model(folder: Path, seed: int = 0) -> Path:
    """A diffusion transformer of one block on images of 28×28 in ten classes, with its scheduler."""
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=1,
        num_layers=1,
        sample_size=28,
        patch_size=4,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    )
    for parameter in model.parameters():  # else the last layer is zero, and nothing that is done to others shows
        parameter.data += 0.05 * torch.randn(parameter.shape)
    model.half().save_pretrained(folder)
    DDIMScheduler().save_pretrained(folder)
    write_json(folder / SUBJECT_FILE, "subject", {"conditions": list(range(10)), "null_condition": None, "extractor": None, "steps": 2})
    return folder


@dataclass
class Scene:
    """Folders of a model, a run of it, and what was written by the run's plan."""

    folder: Path
    model: Path = field(init=False)
    run: Path = field(init=False)
    plan: Path = field(init=False)
    written: Path = field(init=False)
    reference: Path = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.run = self.folder / "model", self.folder / "run"
        self.plan, self.written = self.run / "plans" / "plan.json", self.folder / "small"
        self.reference = self.run / "reference.safetensors"

    def commands(self, seed: int = 0) -> dict[str, list[object]]:
        """All verbs by a name, in the order in which they need each other."""
        run: list[object] = ["--run", self.run]
        measured: list[object] = ["--images", 16, "--steps", 2, "--extractor", "embedded", "--reference", self.reference]
        return {
            "probe": ["probe", self.model, *run, "--configs", 14, "--seed", seed, "--extractor", "embedded", *SETTINGS],
            "adaptive": [
                "probe",
                self.model,
                *run,
                "--configs",
                2,
                "--design",
                "auto",
                "--seed",
                seed,
                "--extractor",
                "embedded",
                *SETTINGS,
            ],
            "fit": ["fit", *run, "--json"],
            "front": ["search", *run, "--front", "--trials", 4, "--json"],
            "search": ["search", *run, "--bits", 3, "--verify", 2, "--trials", 4, "--out", self.plan, "--json"],
            "rounded": ["search", *run, "--bits", 4, "--trials", 4, "--activations", 8, "--json"],
            "timed": ["search", *run, "--bits", 4, "--ms-per-step", 1000, "--trials", 4, "--json"],
            "compare": ["bench", "search", *run, "--bits", 3, "--verify", 2, "--images", 16, "--steps", 2, "--json"],
            "apply": ["apply", self.model, self.plan, *run, "--out", self.written],
            "tune": ["apply", self.model, self.plan, *run, "--out", self.folder / "tuned", "--tune-steps", 2, "--tune-trajectories", 8],
            "evaluate": ["evaluate", self.written, "--against", self.model, *measured, "--json"],
            "keep": ["evaluate", self.written, "--against", self.model, *measured, "--keep-in", self.run, "--json"],
            "report": ["report", *run],
            "doctor": ["doctor", self.run, "--json"],
            "doctor of the model": ["doctor", self.written, "--json"],
            "inspect": ["inspect", self.model, "--plan", self.plan, "--json"],
        }

    def make(self, *, seed: int = 0, model_seed: int = 0, only: tuple[str, ...] | None = None) -> Scene:
        """Run them. Raises RuntimeError where one fails."""
        save_model(self.model, model_seed)
        write_json(self.run.parent / "demo.json", "demo", {"subject": "tiny", "bits": 3.0})
        with less_repetition():
            for name, words in self.commands(seed).items():
                if only is None or name in only:
                    said = call(*words, limit=600)
                    if said.code:
                        raise RuntimeError(f"{name}: {said.code} {said.err}")
        shutil.move(self.run.parent / "demo.json", self.run / "demo.json")
        return self


def copied(scene: Scene, folder: Path) -> Scene:
    """A copy that may be harmed: journals are copied, for they are written in place; all else is linked, for it is replaced."""

    def copy(source: str, target: str) -> None:
        (shutil.copy if source.endswith(".jsonl") else _link)(source, target)

    for path in (scene.model, scene.run, scene.written):
        if path.exists():
            shutil.copytree(path, folder / path.name, copy_function=copy)
    return Scene(folder)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


Harm = Callable[[Path], None]


def keep_small(folder: Path) -> None:
    """A scene to be kept in the repository: without the page, figures and images, which are large, and without the path of this machine."""
    scene = Scene(folder).make()
    for path in [*scene.run.glob("figures/*.[psc][nvs][gv]"), *scene.run.glob("images/*"), scene.run / "report.html"]:
        path.unlink()
    shutil.rmtree(scene.folder / "tuned")
    content = read_json(scene.run / "run.json", "run")
    write_json(scene.run / "run.json", "run", {**content, "subject": {**content["subject"], "argument": "model"}})


if __name__ == "__main__":
    keep_small(Path(sys.argv[1]))
