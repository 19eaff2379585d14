"""Measuring many plans, wherever an executor runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ...aq.formats import Format
from ...errors import InputError
from ...runtime.executors import Serial, parse_executor
from ..run import PROBE, TUNED_PROBE, Run
from .prober import Measurement, Prober


@dataclass(frozen=True)
class PlanTask:
    """A plan to be measured. steps None: as many as the run has. tuned_steps: of tuning, after which it is."""

    formats: Mapping[str, Format]
    n_images: int
    purpose: str = PROBE
    steps: int | None = None
    tuned_steps: int = 0


def probe_task(run: Run, plan: Mapping[str, Format], tuned_steps: int = 0) -> PlanTask:
    """A probe of a run, or one after some steps of tuning."""
    return PlanTask(plan, run.settings.n_images, TUNED_PROBE if tuned_steps else PROBE, tuned_steps=tuned_steps)


class Measurer:
    """Measures plans on an executor. What is stored is read back.

    A context manager: its workers end with it. A worker keeps what it measured in its own shard of the run's journal; this process brings
    all records into its own shard in the order of the tasks, so that the journal is the same whatever the executor. Other commands may measure plans of
    the same run meanwhile: each plan is measured by one of them.

    Args:
        executor: as runtime.executors.parse_executor takes it.

    Raises:
        InputError: an unknown executor, or a subject that other processes cannot load.

    Example:
        with Measurer(Prober(run), "processes:2") as measurer:
            for index, measurement in measurer.measure([PlanTask(plan, 512) for plan in plans]):
                print(index, measurement.metrics["fid"].value)
    """

    def __init__(self, prober: Prober, executor: str = "serial") -> None:
        self.prober, self._executor = prober, parse_executor(executor)
        if self._executor != Serial() and prober.run.subject_argument is None:
            raise InputError(
                f"`executor` {executor!r} needs a subject that each worker can load by itself; pass a folder or FILE.py:FUNCTION, or use 'serial'"
            )
        self._stack = ExitStack()
        self._workers: Any = None

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
        self._workers = None
        self.prober.journal.drop_merged_shards()
        self.prober.restore()  # for whoever stopped in the middle of measurements

    def is_stored(self, task: PlanTask) -> bool:
        """Whether the plan was measured before."""
        return self._stored(task) is not None

    def measure(self, tasks: Sequence[PlanTask]) -> Iterator[tuple[int, Measurement]]:
        """(index of the task, measurement): first of those that were measured before, then of the others as they are finished."""
        keys = [self._key(task) for task in tasks]
        missing: dict[str, PlanTask] = {}
        for index, (key, task) in enumerate(zip(keys, tasks, strict=True)):
            if (found := self._stored(task)) is not None:
                yield index, found
            else:
                missing[key] = task
        with self.prober.assembling(), self.prober.journal.writing() as write:
            waiting = list(dict.fromkeys(keys))

            def merge() -> None:
                """Append what is measured in the order of the tasks, up to the first that is not."""
                while waiting and (record := self.prober.record(waiting[0])) and waiting[0] not in missing:
                    if waiting.pop(0) not in self.prober.journal.written:
                        write(record)

            merge()
            for task, record in self._run(list(missing.values())):
                self.prober.learn(record)
                del missing[record["key"]]
                merge()
                found = self._stored(task)
                assert found is not None
                yield from ((index, found) for index, key in enumerate(keys) if key == record["key"])

    def in_order(self, tasks: Sequence[PlanTask]) -> Iterator[Measurement]:
        """Measurements in the order of the tasks."""
        found: dict[int, Measurement] = {}
        next_index = 0
        for index, measurement in self.measure(tasks):
            found[index] = measurement
            while next_index in found:
                yield found.pop(next_index)
                next_index += 1

    def _run(self, tasks: Sequence[PlanTask]) -> Iterator[tuple[PlanTask, dict[str, Any]]]:
        if not tasks:
            return
        if self._workers is None:
            # Held until the workers have ended, so that none takes this process's shard.
            self._stack.enter_context(self.prober.journal.writing())
            function = self._measure_here if self._executor == Serial() else _Worker(self.prober)
            self._workers = self._stack.enter_context(self._executor.workers(function, name=self._name))
        others = []
        for (task, _), record in self._workers([(task, False) for task in tasks]):
            if record is None:
                others.append(task)
            else:
                yield task, record
        for (task, _), record in self._workers([(task, True) for task in others]):  # what other commands were at
            yield task, record

    def _measure_here(self, item: tuple[PlanTask, bool]) -> dict[str, Any] | None:
        return _measured(self.prober, *item)

    def _name(self, item: tuple[PlanTask, bool]) -> str:
        task, _ = item
        return f"measurement {self._key(task)} of a plan for {task.purpose!r}"

    def _stored(self, task: PlanTask) -> Measurement | None:
        return self.prober.stored(*_arguments(self.prober, task))

    def _key(self, task: PlanTask) -> str:
        return self.prober.key(*_arguments(self.prober, task))


def _arguments(prober: Prober, task: PlanTask) -> tuple[Mapping[str, Format], str, int, int | None, int]:
    steps = prober.run.settings.steps if task.steps is None else task.steps
    return task.formats, task.purpose, task.n_images, steps, task.tuned_steps


def _measured(prober: Prober, task: PlanTask, wait: bool) -> dict[str, Any] | None:
    """The record of a measurement that is kept; None where another command is at it."""
    found = prober.measure_once(*_arguments(prober, task), wait=wait)
    return None if found is None else found.record


class _Worker:
    """What other processes do with a task: the prober comes to them by what it is opened from."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober

    def __call__(self, item: tuple[PlanTask, bool]) -> dict[str, Any] | None:
        return _measured(self._prober, *item)
