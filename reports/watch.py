"""What is going on in a run: commands at work, how far each is, and what went wrong. Nothing is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runtime.status import Command, commands_in
from ..sensitivity.run import probe_journal
from ..storage import read_json
from .numbers import duration


@dataclass(frozen=True)
class RunState:
    """A run as it is now."""

    subject: str
    n_measured: dict[str, int]  # plans, by what they were measured for
    commands: tuple[Command, ...]

    def to_dict(self) -> dict[str, Any]:
        """What the verb `watch` prints as JSON."""
        return asdict(self)

    @property
    def is_at_work(self) -> bool:
        """Whether a command is."""
        return any(command.is_alive for command in self.commands)


def state_of(folder: str | Path, *, without_pid: int | None = None) -> RunState:
    """What is going on in a run's folder.

    Args:
        without_pid: a process whose command is left out, such as the one that asks.

    Raises:
        InputError: no run is there, or a file of it is damaged.
    """
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise InputError(f"`run` {folder}: holds no run (no run.json); make one with `sedaq probe`")
    n_measured = Counter(record["purpose"] for record in probe_journal(folder).read())
    commands = tuple(command for command in commands_in(folder) if command.pid != without_pid)
    return RunState(read_json(folder / "run.json", "run")["subject"]["name"], dict(n_measured), commands)


def command_rows(commands: tuple[Command, ...]) -> list[dict[str, str]]:
    """One row a command, as people read it."""
    return [_row(command) for command in commands]


def _row(command: Command) -> dict[str, str]:
    stage = command.stages[-1] if command.stages else None
    rate = stage.done / stage.elapsed if stage and stage.elapsed else 0.0
    return {
        "command": command.verb,
        "where": f"{command.host} {command.pid}" + (f" + {command.workers}" if command.workers else ""),
        "since": f"{datetime.fromtimestamp(command.began):%d %b %H:%M}",
        "at": stage.description if stage else "",
        "done": f"{stage.done:,.0f} of {stage.total:,.0f}" if stage else "",
        "a minute": f"{60 * rate:,.1f}" if rate else "",
        "left": duration(stage.remaining) if stage and stage.remaining is not None and command.is_alive else "",
        "state": "at work" if command.is_alive else f"was killed after {datetime.fromtimestamp(command.told):%d %b %H:%M}",
        "last warning": command.warnings[-1] if command.warnings else "",
    }
