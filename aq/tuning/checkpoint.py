"""A file with all that a tuning needs to go on bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from ...errors import DamagedError, InputError
from ...runtime.owner import artifact
from ...runtime.tasks import as_damage
from ...storage import load_tensors, save_tensors
from .run import TuningRun

NUMBERS = ("step", "n_steps", "looks_without_gain", "best_loss", "seconds")
log = logging.getLogger("sedaq")


class Checkpoint:
    """State of one tuning, under the name of all that it depends on."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.path = folder / f"state-{identity}.safetensors"
        self.trajectories = folder / f"trajectories-{identity}"  # of the student

    def save(self, run: TuningRun) -> None:
        """Write the state of `run`; an earlier one is replaced only by a whole file."""
        numbers = {name: getattr(run, name) for name in NUMBERS}
        details = {"losses": run.losses, "n_refreshes": run.buffers.n_refreshes}
        save_tensors(self.path, "tuning", run.tensors(), {**details, **numbers, **artifact(self.path)})
        run.buffers.forget(self.trajectories, all_parts=run.step == run.n_steps)

    def load(self, run: TuningRun) -> bool:
        """Bring `run` to where it was; False if there is nothing to go on from, or what there is is damaged."""
        if not self.path.exists():
            return False
        try:
            tensors, metadata = load_tensors(self.path, "tuning", owner=artifact(self.path))
            with as_damage(self.path):
                _check_parts(run, tensors)
                if metadata["step"] < metadata["n_steps"]:
                    run.buffers.restore(metadata["n_refreshes"], self.trajectories)
        except DamagedError:
            log.warning("%s: damaged; the tuning begins anew", self.path)
            return False
        run.restore(tensors)
        run.losses = [(step, loss) for step, loss in metadata["losses"]]
        for name in NUMBERS:
            setattr(run, name, metadata.get(name, 0))  # version 0.1.0 counted no seconds
        return True


def _check_parts(run: TuningRun, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError for tensors that are not those of this tuning; the best state has the names of the present one."""
    wanted = run.tensors()
    wanted |= {f"best:{name.removeprefix('now:')}": tensor for name, tensor in wanted.items() if name.startswith("now:")}
    for name, tensor in wanted.items():
        if not name.startswith("straight_through:") and (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype):
            raise InputError(f"its tensor {name} is not that of this tuning")
