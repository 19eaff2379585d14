"""A file with all that a tuning needs to go on bit for bit."""

from __future__ import annotations

from pathlib import Path

from ...storage import load_tensors, save_tensors
from .run import TuningRun

NUMBERS = ("step", "n_steps", "looks_without_gain", "best_loss")


class Checkpoint:
    """State of one tuning, under the name of all that it depends on."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.path = folder / f"state-{identity}.safetensors"

    def save(self, run: TuningRun) -> None:
        """Write the state of `run`; an earlier one is replaced only by a whole file."""
        numbers = {name: getattr(run, name) for name in NUMBERS}
        details = {"losses": run.losses, "n_refreshes": run.buffers.n_refreshes}
        save_tensors(self.path, "tuning", run.tensors(), {**details, **numbers})

    def load(self, run: TuningRun) -> bool:
        """Bring `run` to where it was; False if there is nothing to go on from."""
        if not self.path.exists():
            return False
        tensors, metadata = load_tensors(self.path, "tuning")
        run.restore(tensors)
        run.buffers.refresh_until(metadata["n_refreshes"])
        run.losses = [(step, loss) for step, loss in metadata["losses"]]
        for name in NUMBERS:
            setattr(run, name, metadata[name])
        return True
