"""Strangers' runs, for hostile.py: what their notes name, links that lead out of them, and files without an end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_run import Scene

from sedaq.storage import json_bytes, read_json

OWN = ("kind", "schema", "sha256")


@dataclass(frozen=True)
class Case:
    """What is done to a copy of the scene, and which command is then given it. `words` may name {run}, {model}, {small}, {plan} and {given}."""

    group: str
    name: str
    harm: Callable[[Scene, Path], object]  # the copy, and a folder of files that a user was sent
    words: tuple[str, ...]


def resealed(path: Path, **fields: Any) -> None:
    """Write a sealed JSON file again with other fields; the seal is right."""
    body = json.loads(path.read_bytes())
    content = {key: value for key, value in body.items() if key not in OWN} | fields
    path.unlink()
    path.write_bytes(json_bytes(body["kind"], content))


def edited(path: Path, **fields: Any) -> None:
    """Write a plain JSON file again with other fields."""
    content = {**json.loads(path.read_bytes()), **fields}
    path.unlink()
    path.write_text(json.dumps(content))


def replaced(path: Path, data: bytes) -> None:
    """Another file in the place of one."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


# -- runs --------------------------------------------------------------------------------------------------------------------------------

FIT, SEARCH, REPORT, DOCTOR = (
    ("fit", "--run", "{run}"), ("search", "--run", "{run}", "--bits", "3", "--trials", "2"), ("report", "--run", "{run}"), ("doctor", "{run}"),
)  # fmt: skip
ARGUMENTS = (
    "evil.py:make", "./evil.py:make", "../given/evil.py:make", "{given}/evil.py:make", "{given}/evil.py", "somebody/model", "../../somebody/model", "os:system",
    "http://example.com/model", "file:///etc/passwd", "git+https://example.com/x", "$(touch mark)", "; touch mark", "a" * 300, "\u0000", "{given}/x.safetensors:{given}",
    "{given}/evil.py:make:{given}", "torch.hub", "-h", "/dev/zero", "/proc/self/mem", "mnist-dit/../../x", "~/model", "",
)  # fmt: skip


def of_runs() -> Iterator[Case]:
    """Runs whose notes name code, places and people."""

    def argued(argument: str) -> Callable[[Scene, Path], object]:
        def harm(scene: Scene, given: Path) -> None:
            (given / "evil.py").write_text("import os\nos.system('touch $SEDAQ_MARK')\ndef make():\n    os.system('touch $SEDAQ_MARK')\n")
            subject = read_json(scene.run / "run.json", "run")["subject"]
            resealed(scene.run / "run.json", subject={**subject, "argument": argument.replace("{given}", str(given))})
            (scene.run / "layers.json").unlink()

        return harm

    for argument in ARGUMENTS:
        for words in (FIT, SEARCH, DOCTOR):
            yield Case("a run names code or a place", f"{argument[:40]!r} {words[0]}", argued(argument), words)
    names = {
        "outside": "../../victim.txt",
        "absolute": "/tmp/sedaq-victim.txt",
        "long": "x" * 300,
        "empty": "",
        "nul": "a\x00b",
        "dot": ".",
        "html": "<script>alert(1)</script>",
    }
    for what, name in names.items():

        def rename(scene: Scene, given: Path, name: str = name) -> None:
            outline = read_json(scene.run / "layers.json", "outline")
            first = outline["layers"][0]
            layers = [{**first, "name": name}, *outline["layers"][1:]]
            tensors = {**outline["tensors"], f"{name}.weight": outline["tensors"][f"{first['name']}.weight"]}
            resealed(scene.run / "layers.json", layers=layers, tensors=tensors, weights={**outline["weights"], name: "0" * 16})
            shutil.rmtree(scene.run / "encodings")

        for words in (FIT, SEARCH, DOCTOR):
            yield Case("names of layers", f"{what} {words[0]}", rename, words)
    for what in ("prompts", "reference", "input_images"):
        for place in ("/dev/zero", "/etc/passwd", "/proc/self/mem", "../../x"):

            def point(scene: Scene, given: Path, what: str = what, place: str = place) -> None:
                settings = read_json(scene.run / "run.json", "run")["settings"]
                resealed(scene.run / "run.json", settings={**settings, what: place})

            yield Case("settings name a place", f"{what} {place}", point, FIT)


def of_links() -> Iterator[Case]:
    """Links out of folders, and devices in the place of files."""
    for name in (
        "run.json",
        "probes.jsonl",
        "layers.json",
        "tunings.jsonl",
        "plans/front.json",
        "predictor/fit.json",
        ".probes.jsonl.lock",
    ):

        def link(scene: Scene, given: Path, name: str = name) -> None:
            path, target = scene.run / name, given.parent / "victim.txt"
            if path.exists():
                target = given.parent / f"victim{path.suffix}"
                shutil.copy(path, target)
                path.unlink()
            path.symlink_to(target)

        for words in (FIT, SEARCH, ("probe", "{model}", "--run", "{run}", "--configs", "15", "{settings}")):
            yield Case("links out of a run", f"{name} {words[0]}", link, words)
    for name in ("plans", "predictor", "encodings", "models", "searches"):

        def link_folder(scene: Scene, given: Path, name: str = name) -> None:
            outside = given.parent / "victim"
            outside.mkdir(exist_ok=True)
            if (scene.run / name).exists():
                shutil.rmtree(scene.run / name)
            (scene.run / name).symlink_to(outside)

        for words in (FIT, SEARCH):
            yield Case("folders that are links", f"{name} {words[0]}", link_folder, words)
    for name in (
        "run/run.json",
        "run/probes.jsonl",
        "run/layers.json",
        "small/config.json",
        "small/sedaq_manifest.json",
        "run/predictor/fit.json",
    ):

        def device(scene: Scene, given: Path, name: str = name) -> None:
            (scene.folder / name).unlink()
            (scene.folder / name).symlink_to("/dev/zero")

        def pipe(scene: Scene, given: Path, name: str = name) -> None:
            (scene.folder / name).unlink()
            os.mkfifo(scene.folder / name)

        for what, harm in (("zeros", device), ("a pipe", pipe)):
            words = (
                ("doctor", "{run}")
                if name.startswith("run")
                else ("evaluate", "{small}", "--images", "8", "--steps", "1", "--extractor", "embedded")
            )
            yield Case("files without an end", f"{name} {what}", harm, words)
