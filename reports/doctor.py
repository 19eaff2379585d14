"""What is whole, missing, damaged, foreign or stray in a run's folder or a written model, and what the next command will do. Nothing is loaded."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..aq.export.apply import PLAN_FILE
from ..aq.plans.plan import Plan
from ..errors import DamagedError, InputError
from ..models.manifest import MANIFEST_FILE, damaged_in, foreign_to
from ..runtime.owner import artifact, owner
from ..runtime.tasks import claimed
from ..sensitivity.probing.probes import MIN_PROBES
from ..sensitivity.run import OUTLINE_FILE, probe_journal
from ..storage import file_sha256, read_json, read_sealed

PROBE, FIT, SEARCH, APPLY = "sedaq probe", "sedaq fit", "sedaq search", "sedaq apply"
# Files of a run by their paths in it: their kind, and the command that makes such a one again; "" where none can.
RECORDS: dict[str, tuple[str, str]] = {
    r"run\.json": ("run", ""),
    r"layers\.json": ("outline", PROBE),
    r"probes(\.\d+)?\.jsonl": ("probe", PROBE),
    r"probes\.jsonl\.d/.*\.json": ("probe", PROBE),
    r"probing\.json": ("probing", PROBE),
    r"menus/.*\.json": ("menu", PROBE),
    r"calibration/traits\..*\.json": ("traits", FIT),
    r"calibration/properties\..*\.json": ("properties", FIT),
    r"calibration/gradients\..*\.safetensors": ("gradients", FIT),
    r"calibration/.*\.safetensors": ("hessian", PROBE),
    r"encodings/.*\.safetensors": ("encoding", PROBE),
    r"books/.*\.safetensors": ("book", PROBE),
    r"reference\.safetensors": ("reference", PROBE),
    r"features/.*\.safetensors": ("features", SEARCH),
    r"images/.*\.safetensors": ("images", "sedaq report"),
    r"activations/.*\.json": ("activations", SEARCH),
    r"step-times/.*\.json": ("step times", SEARCH),
    r"predictor(_tuned)?/additive\.json": ("predictor", FIT),
    r"predictor(_tuned)?/fit\.json": ("fit", FIT),
    r"searches/.*\.json": ("search", SEARCH),
    r"plans/front\.json": ("front", SEARCH),
    r"plans/.*\.json": ("plan", SEARCH),
    r"contest\.json": ("contest", "sedaq bench search"),
    r"evaluations\.jsonl": ("evaluation", "sedaq evaluate"),
    r"evaluations/reference\..*\.safetensors": ("reference", "sedaq evaluate"),
    r"evaluations/.*\.json": ("evaluation result", "sedaq evaluate"),
    r"evaluations/.*\.safetensors": ("evidence", "sedaq evaluate"),
    r"tunings\.jsonl": ("tuning", APPLY),
    r"tuned/.*\.safetensors": ("tuned", APPLY),
    r"trajectories/.*\.safetensors": ("replay", PROBE),
    r"figures/grids\.safetensors": ("grids", "sedaq report"),
    r"demo\.json": ("demo", "sedaq demo"),
}
PLAIN = r"report\.html|figures/[^/]*\.(png|svg|csv)|predictor(_tuned)?/(sensitivity|groups|interactions|properties)\.csv|predictor/trees\d+\.ubj"
STATUS = r"\.status\.[^/]*\.json"  # what a command is at
LOCK, TEMPORARY, FOLDER = r"(.*/)?\.[^/]*\.lock", r"(.*/)?\.[^/]*\.[0-9a-f]{8}", r"(.*/)?\.[^/]*\.(new|old|tuning)/.*"
REMADE = r".*[./@-][0-9a-f]{16}\.(json|safetensors)|layers\.json|predictor(_tuned)?/(additive|fit)\.json"  # by names that sedaq alone gives
HOUR = 3600  # that no half-written file of a living process is old


_UNHELD, _HALF, _KILLED = "a lock that nobody holds", "half-written", "what a killed command was at"


@dataclass(frozen=True)
class Finding:
    """One file that is not as it should be."""

    path: str
    state: str  # missing, damaged, foreign or stray
    what: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """What the verb `doctor` prints as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a folder: how many files are whole, which are not, and what comes next."""

    folder: Path
    n_whole: int
    findings: tuple[Finding, ...]
    next_steps: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, damaged or foreign; strays do no harm."""
        return all(finding.state == "stray" for finding in self.findings)


def examine(folder: str | Path, *, repair: bool = False) -> Diagnosis:
    """Read every file of a run's folder, or of a model that `apply` wrote.

    Args:
        repair: first delete files of a run that are damaged, bear sedaq's names and seal, and can be made again, and what killed processes left behind.

    Raises:
        InputError: a folder that is neither.
    """
    folder = Path(folder)
    if (folder / "run.json").exists():
        if repair:
            _clear(folder, _run(folder).findings)
        return _run(folder)
    if (folder / MANIFEST_FILE).exists() or any(_plans(folder)):
        return _model(folder)
    raise InputError(f"{folder}: is neither a run (no run.json) nor a model that `sedaq apply` wrote; pass one of them")


def _run(folder: Path) -> Diagnosis:
    models = [path for path in sorted((folder / "models").glob("*")) if path.is_dir()] if (folder / "models").is_dir() else []
    inner = [_model(path) for path in models if not path.name.startswith(".")]
    findings = [Finding(f"{d.folder.relative_to(folder)}/{f.path}", f.state, f.what, f.remedy) for d in inner for f in d.findings]
    n_whole = sum(diagnosis.n_whole for diagnosis in inner)
    own = _own(folder)
    for path in sorted(path for path in folder.rglob("*") if not any(model == path or model in path.parents for model in models)):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if _row_of(name) is not None:
                findings.append(Finding(name, "damaged", "a folder where a file belongs", "move it away"))
            continue
        finding = _of_file(path, name, own)
        if finding is None:
            n_whole += 1
        else:
            findings.append(finding)
    findings += _tables(folder)
    return Diagnosis(folder, n_whole, tuple(findings), tuple(_next(folder)))


def _clear(folder: Path, findings: Iterable[Finding]) -> None:
    for finding in findings:
        path, remade = folder / finding.path, re.fullmatch(REMADE, finding.path)
        is_ours = finding.state == "damaged" and remade and (path.stat().st_size == 0 or b"sha256" in path.read_bytes()[: 1 << 20])
        is_left = finding.what in (_UNHELD, _HALF, _KILLED) and time.time() - path.stat().st_mtime > (HOUR if finding.what == _HALF else 0)
        if is_ours or is_left:
            path.unlink()


def _own(folder: Path) -> Mapping[str, str]:
    """What files of the run say whose they are; nothing where that is not known."""
    try:
        return owner(folder)
    except InputError:
        return {}


def _row_of(name: str) -> tuple[str, str] | None:
    return next((row for pattern, row in RECORDS.items() if re.fullmatch(pattern, name)), None)


def _of_file(path: Path, name: str, own: Mapping[str, str]) -> Finding | None:
    """What is wrong with a file of a run; None where nothing is."""
    if re.fullmatch(LOCK, name):
        return None if _is_held(path) else Finding(name, "stray", _UNHELD, "harmless, left by a killed process")
    if re.fullmatch(STATUS, name):
        with claimed(path, wait=False) as is_free:
            return Finding(name, "stray", _KILLED, "goes when the next command begins") if is_free else None
    if re.fullmatch(TEMPORARY, name):
        return Finding(name, "stray", _HALF, "harmless, left by a killed process, or of one that is at it")
    if re.fullmatch(FOLDER, name):
        return Finding(name, "stray", "of an apply that was killed, or is at it", "goes when it is applied again")
    if re.fullmatch(PLAIN, name):
        return None
    row = _row_of(name)
    if row is None:
        return Finding(name, "stray", "not of sedaq", "yours to keep")
    kind, command = row
    remedy = f"again by {command}" if command else "the run cannot be opened: begin another"
    try:
        found, records = read_sealed(path)
    except InputError as error:
        return Finding(name, "damaged", str(error).removeprefix(f"{path}: "), remedy)
    if found != kind:
        return Finding(name, "foreign", f"is a file of kind {found!r} where {kind!r} belongs", remedy)
    for record in records:
        for field, value in {**artifact(path), **own}.items():
            if record.get(field, value) != value:
                return Finding(name, "foreign", f"is of another {field}, {record[field]}", remedy)
    return None


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _tables(folder: Path) -> Iterator[Finding]:
    """Tables of the fit, which have no seal of their own."""
    for fitted in ("predictor", "predictor_tuned"):
        try:
            tables = read_json(folder / fitted / "fit.json", "fit").get("tables", {})
        except InputError:
            continue  # told of above, or not fitted yet
        for name, sha256 in tables.items():
            path = folder / fitted / f"{name}.csv"
            if not path.exists():
                yield Finding(f"{fitted}/{name}.csv", "missing", "a table of the fit", f"again by {FIT}")
            elif file_sha256(path) != sha256:
                yield Finding(f"{fitted}/{name}.csv", "damaged", "not as it was fitted", f"again by {FIT}")


def _next(folder: Path) -> Iterator[str]:
    try:
        probes = [record for record in probe_journal(folder).read() if record.get("purpose", "probe") == "probe"]
        content: dict[str, Any] = read_json(folder / "run.json", "run")
    except InputError:
        return
    note = content["subject"]["argument"]
    yield f"the model is {note or 'a Subject made in Python'}; {'its outline is known' if (folder / OUTLINE_FILE).exists() else 'it has to be named once'}"
    if len(probes) < MIN_PROBES:
        yield f"`{PROBE}`: {len(probes)} plans are measured, and a predictor needs {MIN_PROBES}"
        return
    fitted = folder / "predictor" / "fit.json"
    try:
        known = read_json(fitted, "fit")["n_probes"] if fitted.exists() else 0
    except InputError:
        known = 0
    yield f"`{FIT}`: {'reads the fit back' if known == len(probes) else f'fits {len(probes)} probes, {known} of which are fitted'}"


def _plans(folder: Path) -> list[Path]:
    """The plan files of a written model: in its folder, or in a pipeline's components. Folders further down are not its own."""
    inner = folder.glob(f"*/{PLAN_FILE}") if (folder / "model_index.json").exists() else ()
    return [path for path in (folder / PLAN_FILE, *sorted(inner)) if path.is_file()]


def _model(folder: Path) -> Diagnosis:
    """A folder that `apply` wrote."""
    remedy = "delete the folder and apply the plan again"
    findings: list[Finding] = []
    n_whole = 0
    if (folder / MANIFEST_FILE).exists():
        try:
            harmed = dict(damaged_in(folder))
            n_whole = len(read_json(folder / MANIFEST_FILE, "manifest")["files"]) - len(harmed)
            findings = [
                Finding(name, state, "not as sedaq wrote it" if state == "damaged" else "written by sedaq", remedy)
                for name, state in harmed.items()
            ]
            stray = foreign_to(folder)
            if stray is not None and stray not in harmed:
                findings.append(Finding(stray, "stray", "not of sedaq", "yours to keep; `apply` does not write over it"))
        except DamagedError as error:
            findings.append(Finding(MANIFEST_FILE, "damaged", str(error), remedy))
    else:
        what = "written by an earlier version, so that nothing can be compared"
        findings.append(Finding(MANIFEST_FILE, "missing", what, "apply the plan to another folder to have one"))
    for path in _plans(folder):
        try:
            Plan.load(path)
        except InputError as error:
            findings.append(Finding(str(path.relative_to(folder)), "damaged", str(error), remedy))
    return Diagnosis(folder, n_whole, tuple(dict.fromkeys(findings)), ())
