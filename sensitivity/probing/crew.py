"""Measuring many plans, in this process or in several that share the work."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch

from ...aq.activations.quantizer import ActivationQuantizers
from ...aq.formats import Format
from ...errors import InputError
from ..run import Run
from .prober import Measurement, Prober


@dataclass(frozen=True)
class Job:
    """A plan to be measured. steps None: as many as the run has."""

    formats: Mapping[str, Format]
    n_images: int
    purpose: str = "probe"
    steps: int | None = None


class Crew:
    """Measures jobs with `workers` processes; each gets an equal part of the processor's cores. What is stored is read back.

    A context manager: its processes end with it. Raises InputError for a subject that other processes cannot load.
    """

    def __init__(self, prober: Prober, workers: int = 1) -> None:
        run = prober.run
        if workers < 1:
            raise InputError(f"`workers` must be at least 1, got {workers}")
        if workers > 1 and run.subject_argument is None:
            raise InputError("`workers` above 1 needs a subject that each worker can load by itself; pass a folder or FILE.py:FUNCTION")
        self.prober, self.workers = prober, workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.prober.restore()  # for whoever stopped in the middle of measurements

    def is_stored(self, job: Job) -> bool:
        return self._stored(job) is not None

    def _steps(self, job: Job) -> int | None:
        return self.prober.run.settings.steps if job.steps is None else job.steps

    def _stored(self, job: Job) -> Measurement | None:
        return self.prober.stored(job.formats, job.purpose, job.n_images, self._steps(job))

    def _key(self, job: Job) -> str:
        return self.prober.key(job.formats, job.purpose, job.n_images, self._steps(job))

    def measure(self, jobs: Sequence[Job]) -> Iterator[Measurement]:
        """Measurements in the order of the jobs, each kept as it comes: the files are those that one worker writes."""
        missing = {self._key(job): job for job in jobs if not self.is_stored(job)}
        if self.workers > 1 and len(missing) > 1:
            futures = {key: self._started_pool().submit(_work, job, self._steps(job)) for key, job in missing.items()}
        else:
            futures = {}
        with self.prober.assembling():
            for job in jobs:
                found = self._stored(job)
                if found is None:
                    future = futures.get(self._key(job))
                    arguments = (job.formats, job.purpose, job.n_images, self._steps(job))
                    found = future.result() if future else self.prober.sample_and_measure(*arguments)
                    self.prober.keep(found)
                yield found

    def _started_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            run, threads = self.prober.run, max(1, torch.get_num_threads() // self.workers)
            start = (str(run.folder), self.prober.split, self.prober.inputs, run.device, threads)
            self._pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _start_worker, start)
        return self._pool


_worker: Prober | None = None


def _start_worker(folder: str, split: str, inputs: ActivationQuantizers | None, device: str, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = Prober(Run.open(folder, device=device), split=split, inputs=inputs)


def _work(job: Job, steps: int | None) -> Measurement:
    assert _worker is not None
    return _worker.sample_and_measure(job.formats, job.purpose, job.n_images, steps)
