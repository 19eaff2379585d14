"""How well does a cluster's time go into probes?  python benchmarks/cluster_simulation.py      → results/cluster_simulation.json

A discrete-event simulation of what runtime/workers.py does: a queue of items, workers that take one at a time, an item whose worker dies goes to the
queue's end with a new worker, three tries in all. A worker starts, loads the model, samples it in full precision once, and then measures plan after
plan. Times of GPUs are assumptions, written down in JOBS, for none was at hand; those of this machine are from results/. Efficiency is the
workers' time in measurements that were kept, over all of their time from the first start to the last result.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import simpy
from results import RESULTS, keep

from sedaq.runtime.workers import MAX_TRIES

STORE_SECONDS = 0.02  # of one request to the shared store
STORE_STREAMS = 16  # requests that it serves at once
REQUESTS = 8  # of a probe: its lock, the journal's listing, its record and features
FAILURES = 0.01  # of a try: the worker dies somewhere in it
SPREAD = 0.05  # standard deviation of a probe's time, relative to it
DRIVER_SECONDS = 0.005  # that the process which hands items out takes for each
SEEDS = 5


@dataclass(frozen=True)
class Job:
    """Probes of one model on a cluster.

    Args:
        probe: seconds of a measurement on one worker.
        start: seconds until a worker is up and has loaded the model.
        files: encodings that a probe reads, one after another; each costs a request where nothing is cached (`cached`: from the second time on, a copy on the
            worker's own disk is read).
        full_precision: of the model, as a share of a probe's time, that each worker samples before its first probe.
        price: of an hour of a worker, in dollars.
    """

    name: str
    n_probes: int
    workers: int
    probe: float
    start: float
    files: int
    cached: bool = True
    full_precision: float = 1.0
    price: float = 2.5


@dataclass
class Outcome:
    """Seconds of workers, by what they went into."""

    spent: Counter[str]
    n_done: int = 0
    n_failed: int = 0
    n_set_aside: int = 0
    seconds: float = 0.0  # of the clock


def simulate(job: Job, seed: int) -> Outcome:
    world, rng = simpy.Environment(), random.Random(seed)
    store, driver = simpy.Resource(world, STORE_STREAMS), simpy.Resource(world, 1)
    waiting: list[tuple[float, int]] = [(job.probe * max(0.2, rng.gauss(1, SPREAD)), 0) for _ in range(job.n_probes)][::-1]
    outcome = Outcome(Counter())

    def requests(n: int) -> Iterator[Any]:
        for _ in range(n):
            with store.request() as turn:
                yield turn
                yield world.timeout(STORE_SECONDS)

    def timed(what: str, work: Iterator[Any]) -> Iterator[Any]:
        began = world.now
        yield from work
        outcome.spent[what] += world.now - began

    def lasting(seconds: float) -> Iterator[Any]:
        yield world.timeout(seconds)

    def handed_out() -> Iterator[Any]:
        with driver.request() as turn:
            yield turn
            yield world.timeout(DRIVER_SECONDS)

    def worker() -> Iterator[Any]:
        """One slot of the cluster: whoever dies in it is followed by another."""
        while waiting:
            yield from timed("start", lasting(job.start))
            yield from timed("full precision", lasting(job.full_precision * job.probe))
            is_first = True
            while waiting:
                seconds, tries = waiting.pop()
                yield from timed("waiting for the driver", handed_out())
                yield from timed("store", requests(REQUESTS + (0 if job.cached and not is_first else job.files)))
                is_first = False
                if rng.random() < FAILURES:
                    yield from timed("lost with a worker", lasting(seconds * rng.random()))
                    outcome.n_failed += 1
                    if tries + 1 < MAX_TRIES:
                        waiting.insert(0, (seconds, tries + 1))
                    else:
                        outcome.n_set_aside += 1
                    break
                yield from timed("probes", lasting(seconds))
                outcome.n_done += 1

    slots = [world.process(worker()) for _ in range(job.workers)]
    world.run(world.all_of(slots))
    outcome.seconds = world.now
    outcome.spent["idle at the end"] = job.workers * world.now - sum(outcome.spent.values())
    return outcome


def row_of(job: Job) -> dict[str, Any]:
    """Means over seeds: efficiency, and where the rest of the time goes, as shares of all of the workers' time."""
    outcomes = [simulate(job, seed) for seed in range(SEEDS)]
    hours = [job.workers * outcome.seconds / 3600 for outcome in outcomes]
    shares = {
        what: statistics.fmean(o.spent[what] / (job.workers * o.seconds) for o in outcomes)
        for what in sorted({w for o in outcomes for w in o.spent})
    }
    return {
        **asdict(job),
        "efficiency": shares.pop("probes"),
        "lost": shares,
        "hours": statistics.fmean(o.seconds for o in outcomes) / 3600,
        "worker_hours": statistics.fmean(hours),
        "dollars": job.price * statistics.fmean(hours),
        "n_failed": statistics.fmean(o.n_failed for o in outcomes),
        "n_set_aside": statistics.fmean(o.n_set_aside for o in outcomes),
    }


def jobs() -> list[Job]:
    measured = {row["model"]: row for row in json.loads((RESULTS / "probe_throughput.json").read_text())["rows"]}
    # 64 images of 1024² at 30 steps with guidance, 1.9 s an image; 64 at 28 steps, 7.5 s an image. Layers as in results/architectures.json.
    sdxl = Job("SDXL-like, 500 probes", 500, 64, probe=120.0, start=60.0, files=794)
    flux = Job("FLUX-like, 2,000 probes", 2000, 256, probe=480.0, start=180.0, files=504)
    dit = Job("mnist-dit, 500 probes", 500, 8, probe=measured["mnist-dit"]["seconds"], start=8.0, files=39, price=0.05)
    found = []
    for job, counts in ((sdxl, (1, 4, 8, 16, 32, 64, 128)), (flux, (32, 64, 128, 256, 512)), (dit, (1, 8, 32))):
        found += [replace(job, workers=workers) for workers in counts]
    for job in (sdxl, flux):
        found += [
            replace(job, name=f"{job.name}, nothing cached", cached=False),
            replace(job, name=f"{job.name}, full precision shared", full_precision=1 / job.workers),
        ]
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for job in jobs():
        rows.append(row_of(job))
        print(f"{job.name}, {job.workers} workers: {rows[-1]['efficiency']:.3f} {rows[-1]['hours']:.2f} h {rows[-1]['lost']}", flush=True)
    conditions = {
        "store_seconds": STORE_SECONDS,
        "store_streams": STORE_STREAMS,
        "requests": REQUESTS,
        "failures": FAILURES,
        "spread": SPREAD,
        "driver_seconds": DRIVER_SECONDS,
        "seeds": SEEDS,
    }
    keep("cluster_simulation", "python benchmarks/cluster_simulation.py", rows, conditions=conditions)


if __name__ == "__main__":
    main()
