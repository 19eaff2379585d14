"""Injected faults:  python benchmarks/faults.py      → results/faults.json

Makes a run of a tiny model with every kind of stored file, and a written model; harms one file at a time in a copy, and calls every verb that reads
it. A fault is noticed where the verb says so in one line with exit code 2 (doctor: 1), or warns and goes on; harmless where it says nothing and gives
what it gave before; silent where it says nothing and gives something else; uncaught where an exception that is none of sedaq's comes out, or nothing
within LIMIT seconds. What a message tells the user to do is done once for each kind of file and message, and must help.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harms import FAULTS, Fault, kind_of, put, swaps
from results import keep
from tiny_run import Said, Scene, call, copied, less_repetition, listening

from sedaq.errors import SedaqError
from sedaq.kernels.timing import clock
from sedaq.reports.inputs import read_run
from sedaq.reports.run_report import image_grids
from sedaq.reports.search_figures import comparison_table, how_found
from sedaq.sensitivity.run import Run

LIMIT = 5.0
N_FILES = 3  # of a kind that are harmed
# Which verbs read a file; searches are made anew, so that what they need is read. What no verb reads, doctor does.
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"run\.json", ("probe", "fit", "search", "apply", "report", "doctor")),
    (r"layers\.json", ("fit", "search", "doctor")),
    (r"probes\.jsonl", ("probe", "fit", "report", "doctor")),
    (r"menus/.*", ("probe", "search", "doctor")),
    (r"calibration/(traits|gradients)\..*", ("fit", "search", "doctor")),
    (r"calibration/.*", ("encode", "doctor")),
    (r"encodings/.*", ("apply", "encode", "doctor")),
    (r"books/.*", ("encode", "doctor")),
    (r"reference\.safetensors", ("probe", "evaluate", "doctor")),
    (r"features/.*", ("search anew", "doctor")),
    (r"images/.*", ("report", "doctor")),
    (r"activations/.*", ("rounded", "doctor")),
    (r"step-times/.*", ("timed", "doctor")),
    (r"predictor/.*", ("fit", "search", "report", "doctor")),
    (r"searches/.*", ("search", "doctor")),
    (r"plans/plan\.json", ("apply", "inspect", "report", "doctor")),
    (r"plans/front\.json|contest\.json|evaluations\.jsonl|tunings\.jsonl|figures/grids\.safetensors", ("report", "doctor")),
    (r"tuned/.*", ("tune", "doctor")),
    (r"probing\.json|demo\.json|plans/.*", ("doctor",)),
)
OF_MODELS = ("evaluate", "doctor of the model")
NAMED = {"evaluate": "reference", "inspect": "plan"}  # files that the user names to a verb: another one is what he asked for


# -- verbs -------------------------------------------------------------------------------------------------------------------------------


def run_verb(scene: Scene, verb: str) -> Said:
    """Call a verb; of the report what it reads and samples, for drawing takes seconds."""
    if verb == "report":
        return in_python(lambda: report_data(scene))
    if verb == "encode":
        for path in (scene.run / "menus").glob("*.json"):
            path.unlink()  # choosing formats again reads calibration and codebooks
        return call(*scene.commands()["probe"])
    if verb in ("search anew", "rounded", "timed"):
        shutil.rmtree(scene.run / "searches")
    return call(*scene.commands()[verb.removesuffix(" anew")])


def in_python(work: Callable[[], str]) -> Said:
    """As the command line reports it."""

    start = clock()
    with listening() as log:
        try:
            code, out, err = 0, work(), ""
        except SedaqError as error:
            code, out, err = error.exit_code, "", str(error)
        except Exception as error:
            code, out, err = -2, "", f"uncaught {type(error).__name__}: {error}"
    return Said(code, out, "\n".join([err, *log]).strip(), clock() - start)


def report_data(scene: Scene) -> str:
    """All that a report is drawn from."""
    grids = image_grids(Run.open(scene.run))
    data = read_run(scene.run)
    shown = [
        [
            data.run,
            data.fit,
            data.comparison and comparison_table(data).to_csv(),
            data.plan and [data.plan.hash, data.plan.size_bytes, how_found(data.plan.provenance)],
        ],
        [[probe[name] for name in ("layers", "metrics", "n_images")] for probe in data.probes],
        [[row[name] for name in ("name", "size_bytes", "metrics", "n_images")] for row in data.evaluations],
        [[row[name] for name in ("name", "held_out_losses", "ending", "seconds")] for row in data.tunings],
        [[row[name] for name in ("predicted", "measured", "uniform_measured", "difference_ci", "size_bytes")] for row in data.front or ()],
    ]
    tables = [] if data.sensitivity is None else [data.sensitivity.to_csv()]
    images = [[name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest()] for of in (grids, data.grids) for name, tensor in of.items()]
    return json.dumps([shown, tables, images], sort_keys=True, default=str)


def result_of(scene: Scene, verb: str, said: Said) -> str:
    """What a verb came to, without times: what it printed, or the weights or probes that it wrote."""
    if verb in ("apply", "tune"):
        out = scene.written if verb == "apply" else scene.folder / "tuned"
        paths = sorted(out.glob("*.safetensors"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    if verb in ("probe", "encode"):
        lines = [json.loads(line) for line in (scene.run / "probes.jsonl").read_text().splitlines()]
        return json.dumps(sorted([line["key"], line["metrics"]] for line in lines))
    text = re.sub(r'"(seconds|date|ms_per_step)": [^,}\n]*', r'"\1": 0', said.out).replace(str(scene.folder), "")
    return json.dumps(json.loads(text), sort_keys=True) if text.startswith(("{", "[")) else text


# -- judging -----------------------------------------------------------------------------------------------------------------------------


class Bench:
    """Counts what verbs made of faults, and tries the remedies that they named."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.scene = Scene(folder / "scene").make()
        enough = ("probe", "adaptive", "fit", "front", "search", "rounded", "apply", "tune")
        self.others = {
            "file of another seed's run": Scene(folder / "seed").make(seed=1, only=enough),
            "file of another model's run": Scene(folder / "other").make(model_seed=1, only=enough),
        }
        self.expected: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.remedies: dict[tuple[str, str], bool] = {}

    def files(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Paths in the run, a few of each kind, and who reads them."""
        found: Counter[str] = Counter()
        paths = [path for path in sorted(self.scene.run.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        self.rng.shuffle(paths)
        for path in paths:
            name = str(path.relative_to(self.scene.run))
            verbs = next((verbs for pattern, verbs in READERS if re.fullmatch(pattern, name)), ())
            found[kind_of(name)] += 1
            if verbs and found[kind_of(name)] <= N_FILES:
                yield name, verbs

    def harm_all(self) -> None:
        """Every fault of every file, with every verb that reads it."""
        for name, verbs in self.files():
            given = dict(FAULTS) | {what: put(source) for what, source in swaps(name, self.scene, self.others, self.rng)}
            for what, fault in given.items():
                self.try_fault(f"run/{name}", kind_of(name), what, fault, verbs)
            print(name, Counter(row["came_to"] for row in self.rows), flush=True)
        others = self.others["file of another seed's run"].written
        for path in sorted(self.scene.written.iterdir()):
            for what, fault in (dict(FAULTS) | {"swapped with a file of another model": put(others / path.name)}).items():
                self.try_fault(f"small/{path.name}", f"model: {path.name}", what, fault, OF_MODELS)
        print(Counter(row["came_to"] for row in self.rows), flush=True)

    def try_fault(self, name: str, kind: str, what: str, fault: Fault, verbs: tuple[str, ...]) -> None:
        for verb in verbs:
            if what.startswith("swapped") and NAMED.get(verb) == kind:
                continue
            with tempfile.TemporaryDirectory(dir=self.folder) as copy:
                scene = copied(self.scene, Path(copy) / "scene")
                state = self.rng.getstate()
                if not fault(scene.folder / name, self.rng):
                    return
                said = run_verb(scene, verb)
                came_to = self.judge(scene, verb, said)
                row = {"kind": kind, "fault": what, "verb": verb, "came_to": came_to, "seconds": round(said.seconds, 2)}
                if came_to in ("silent", "uncaught"):
                    row["said"] = said.words[-300:]
                    print(row, name, flush=True)
                self.rows.append(row)
                if came_to == "noticed" and said.code == 2:
                    self.try_remedy(scene, name, verb, said.words)
            self.rng.setstate(state)  # the next verb meets the same fault
        self.rng.random()

    def judge(self, scene: Scene, verb: str, said: Said) -> str:
        if said.code < 0 or said.seconds > LIMIT + self.took(verb) or "failed with" in said.words or said.code not in (0, 1, 2):
            return "uncaught"
        if said.code or said.words:
            return "noticed"
        if result_of(scene, verb, said) == self.expected[verb]:
            return "harmless"
        return "noticed" if verb.startswith("doctor") else "silent"  # a stray is a line of what the doctor prints

    def took(self, verb: str) -> float:
        """Seconds on the whole run; what it came to is kept."""
        if verb not in self.expected:
            with tempfile.TemporaryDirectory(dir=self.folder) as copy:
                scene = copied(self.scene, Path(copy) / "scene")
                said = run_verb(scene, verb)
                if said.code or said.words:
                    raise RuntimeError(f"{verb}: {said.code} {said.err}")
                self.expected[verb], self.seconds[verb] = result_of(scene, verb, said), said.seconds
        return self.seconds[verb]

    seconds: dict[str, float] = {}  # noqa: RUF012  of each verb

    def try_remedy(self, scene: Scene, name: str, verb: str, words: str) -> None:
        """Do what the message says, once for each kind of file and remedy; then the verb must work."""
        remedy = words.rpartition("; ")[2].splitlines()[0]
        key, path = (kind_of(name.removeprefix("run/")), remedy), scene.folder / name
        if str(path) not in words:  # another file is blamed, where run.json is of another run
            return
        steps = next((steps for part, steps in REMEDIES.items() if part in remedy), None)
        if key in self.remedies or steps is None:
            return
        steps(scene, path, words)
        self.remedies[key] = run_verb(scene, verb).code == 0
        print("remedy", key, self.remedies[key], flush=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_line(path: Path, words: str) -> None:
    found = re.search(r" line (\d+):", words)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[int(found[1]) - 1 if found else -1]
    path.write_bytes(b"".join(lines))


def _begin_again(scene: Scene) -> None:
    shutil.rmtree(scene.run)
    for verb in ("probe", "fit", "search"):
        call(*scene.commands()[verb])


REMEDIES: Mapping[str, Callable[[Scene, Path, str], Any]] = {
    "remove the line": lambda scene, path, words: _remove_line(path, words),
    "delete the file": lambda scene, path, words: _remove(path),
    "move it away": lambda scene, path, words: _remove(path),
    "move the file away": lambda scene, path, words: _remove(path),
    "run `sedaq fit` again": lambda scene, path, words: call(*scene.commands()["fit"]),
    "run `sedaq bench search` again": lambda scene, path, words: call(*scene.commands()["compare"]),
    "search the front again": lambda scene, path, words: call(*scene.commands()["front"]),
    "search again": lambda scene, path, words: (_remove(path), call(*scene.commands()["search"])),
    "begin another run": lambda scene, path, words: _begin_again(scene),
    "apply the plan again": lambda scene, path, words: (shutil.rmtree(scene.written), call(*scene.commands()["apply"])),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    start = clock()
    with tempfile.TemporaryDirectory() as folder, less_repetition():
        bench = Bench(Path(folder), seed)
        bench.harm_all()
    outcomes = Counter(row["came_to"] for row in bench.rows)
    tables: dict[str, Counter[str]] = {}
    for row in bench.rows:
        tables.setdefault(row["fault"], Counter())[row["came_to"]] += 1
    worked = sum(bench.remedies.values())
    rows = {
        "n_faults": len(bench.rows),
        "outcomes": dict(outcomes),
        "by_fault": [{"fault": fault, **counts} for fault, counts in sorted(tables.items())],
        "kinds": len({row["kind"] for row in bench.rows}),
        "remedies": {
            "tried": len(bench.remedies),
            "worked": worked,
            "failed": [" / ".join(key) for key, done in bench.remedies.items() if not done],
        },
        "worst": [row for row in bench.rows if row["came_to"] in ("silent", "uncaught")],
    }
    keep("faults", f"python benchmarks/faults.py --seed {seed}", rows, seconds=round(clock() - start, 1))
    print(json.dumps({key: rows[key] for key in ("n_faults", "outcomes", "remedies", "worst")}, indent=1))


if __name__ == "__main__":
    main()
