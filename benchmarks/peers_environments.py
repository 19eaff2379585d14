"""Environments of methods, one each:  python benchmarks/peers_environments.py [METHOD …]      → build/peers/environments/METHOD

Methods want versions of packages that sedaq and other methods do not, so that none is installed beside sedaq. torch is the version of constraints.txt, whose
CPU build is taken where one lies at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peers_methods import METHODS, Setting
from safetensors import safe_open
from safetensors.torch import save_file

from sedaq.errors import SedaqError
from sedaq.kernels.timing import clock
from sedaq.models.subject import Subject

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "peers"
CHILD = Path(__file__).with_name("peers_child.py")
NEEDED = ("numpy", "safetensors")  # beside torch, of the child
VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name).partition("+")[0]
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def environment_of(method: str) -> str:
    """Ways to use one library share its environment, and its function in peers_child.py: sdnq-svd is sdnq's."""
    return method.partition("-")[0]


def python_of(method: str) -> Path:
    return FOLDER / "environments" / environment_of(method) / "bin" / "python"


def install(method: str) -> None:
    """Make the environment of a method, or bring it to the versions of the table. Raises SedaqError where pip fails."""
    if not python_of(method).exists():
        subprocess.run([sys.executable, "-m", "venv", str(python_of(method).parents[1])], check=True)
    packages = [f"{name}=={version}" for name, version in METHODS[method].packages.items()]
    command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([python_of(method), *command, *packages, *NEEDED], capture_output=True, text=True)
    if done.returncode:
        raise SedaqError(f"{method}: pip could not install {', '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")


def missing(method: str) -> str | None:
    """Why a method cannot be measured, in one line; None where its packages have the versions of the table."""
    wanted = METHODS[method].packages
    if not wanted:
        return None
    remedy = f"run `python benchmarks/{Path(__file__).name} {environment_of(method)}`"
    if not python_of(method).exists():
        return f"{method}: is not installed; {remedy}"
    known = json.loads(_python(method, "-c", VERSIONS, *wanted))
    for name, version in wanted.items():
        if known[name] is None:
            return f"{method}: lacks {name} {version}; {remedy}"
        if known[name] != version:
            return f"{method}: has {name} {known[name]} where {version} is measured; {remedy}"
    return None


def _python(method: str, *arguments: str) -> str:
    """What a program of the method's environment prints. Raises SedaqError with its last line where it fails."""
    one = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")} | one
    done = subprocess.run([python_of(method), *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SedaqError(f"{method}: {lines[-1]}")
    return done.stdout


def quantized_by(setting: Setting, subject: Subject) -> tuple[dict[str, torch.Tensor], dict[str, int], float]:
    """Weights as the method gives them back, bytes that it stores of each, and seconds; of the layers that it could quantize."""
    layers = [layer for layer in subject.layers if setting.takes(layer)]
    weights = {layer.name: subject.weight(layer.name).half().contiguous() for layer in layers}
    known: Mapping[str, Any] = {layer.name: {"kind": layer.kind, "groups": layer.groups} for layer in layers}
    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(Path(folder) / f"{name}.safetensors") for name in ("source", "target"))
        save_file(weights, source, {"layers": json.dumps(known)})
        _python(setting.method, str(CHILD), environment_of(setting.method), json.dumps(setting.options), source, target)
        with safe_open(target, "pt") as file:
            metadata = file.metadata()
            found = {name: file.get_tensor(name) for name in file.keys()}
    return found, json.loads(metadata["bytes"]), float(metadata["seconds"])


def main() -> None:
    outside = [name for name, method in METHODS.items() if method.packages and name == environment_of(name)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"all by default: {', '.join(outside)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.methods) - set(outside):
        parser.error(f"there is no method {sorted(unknown)[0]}; choose among {', '.join(outside)}")
    failed = False
    for method in arguments.methods or outside:
        began = clock()
        try:
            install(method)
            print(f"{method}: installed in {clock() - began:.0f} s", flush=True)
        except SedaqError as error:
            failed = True
            print(error, file=sys.stderr, flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
