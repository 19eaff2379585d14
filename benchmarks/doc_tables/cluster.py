"""Tables of executors, and of the simulated cluster."""

from __future__ import annotations

from .layout import Results, count, fixed, percent, table

PARTS = {
    "start": "start",
    "full precision": "full precision",
    "store": "store",
    "lost with a worker": "failures",
    "idle at the end": "last probes",
}


def executors(results: Results) -> str:
    """Seconds of a probe on each executor, beside those in this process."""
    return table(
        results.rows("executors"),
        {
            "executor": lambda row: f"`{row['executor']}`",
            "workers": lambda row: str(row["workers"]),
            "seconds a probe": lambda row: fixed(row["seconds"], 2),
            "`serial` meanwhile": lambda row: fixed(row["serial_seconds"], 2),
            "faster": lambda row: f"{fixed(row['speedup'], 2)} times",
            "of turns": lambda row: f"{fixed(min(row['speedups']), 2)} to {fixed(max(row['speedups']), 2)}",
            "outside of measurements": lambda row: percent(row["outside"], 1),
        },
    )


def cluster_efficiency(results: Results) -> str:
    """Where the workers' time goes, in the simulation."""
    return table(
        results.rows("cluster_simulation"),
        {
            "job": lambda row: row["name"],
            "workers": lambda row: count(row["workers"]),
            "probes a worker": lambda row: count(row["n_probes"] / row["workers"]),
            "hours": lambda row: fixed(row["hours"], 2),
            "hours of workers": lambda row: fixed(row["worker_hours"], 1),
            "dollars": lambda row: fixed(row["dollars"], 0 if row["dollars"] >= 10 else 2),
            "efficiency": lambda row: percent(row["efficiency"], 1),
            **{head: lambda row, part=part: percent(row["lost"].get(part, 0.0), 1) for part, head in PARTS.items()},  # type: ignore[misc]
        },
    )


def cluster_assumptions(results: Results) -> str:
    """What the simulation takes for one worker, in one sentence."""
    found = {row["name"].partition(",")[0]: row for row in results.rows("cluster_simulation")}
    return "; ".join(
        f"{name} {fixed(row['probe'], 1)} s a probe, {count(row['start'])} s to start, {fixed(row['price'], 2)} dollars an hour"
        for name, row in found.items()
    )


TABLES = (executors, cluster_efficiency, cluster_assumptions)
