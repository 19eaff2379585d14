"""What verbs print: short tables of a result."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .numbers import duration, interval, metric, number
from .tables import rows_table
from .watch import command_rows

if TYPE_CHECKING:
    from ..search.find import SearchResult
    from .doctor import Finding
    from .watch import RunState


def console() -> Console:
    """Stdout, as wide as a table needs to be where that is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


def show(what: RenderableType) -> None:
    """Print a table, or the like, on stdout."""
    console().print(what)


def fit_table(summary: Mapping[str, Any]) -> Table:
    """How the predictor orders held-out probes, beside simpler predictors and the noise ceiling."""
    rows: list[dict[str, Any]] = []
    for name, score in summary["scores"].items():
        numbers = {column: score[column] for column in ("spearman", "kendall", "ndcg10", "mae")}
        rows.append({"predictor": name, **numbers, "behind, 95 %": interval(score.get("behind_ci"))})
    rows[0]["behind, 95 %"] = f"itself {interval(summary['spearman_ci'])}"
    rows.append({"predictor": "noise ceiling", "spearman": summary["ceiling"], "behind, 95 %": interval(summary["ceiling_ci"])})
    columns = ["predictor", "spearman", "kendall", "ndcg10", "mae", "behind, 95 %"]
    return rows_table(
        rows, columns, title=f"{summary['metric']} of {summary['n_probes']} probes, out of fold; {summary['n_trees'] or 'no'} trees"
    )


def quality_table(learnt: Mapping[str, Any]) -> Table:
    """What a prior is worth on each model by what the others teach, before and after runs were added."""
    columns = {
        "model": "model",
        "spearman": "spearman",
        "by_score": "by gradient score alone",
        "log_ratio": "|log ratio|",
        "log_ratio_in_model": "about its level",
        "covered": "in 90 % intervals",
    }
    before, after = learnt["before"] or {"models": {}}, learnt["after"]
    rows = [{"model": name, **row} for name, row in after["models"].items()]
    rows.append({"model": "mean", **{name: after[name] for name in columns if name in after}})
    if before["models"]:
        rows.append({"model": "mean before", **{name: before[name] for name in columns if name in before}})
    for row in rows:
        row["model"] += " (new)" if row["model"] in learnt["added"] and row["model"] not in before["models"] else ""
    named = [{label: row.get(name) for name, label in columns.items()} for row in rows]
    return rows_table(named, list(columns.values()), title="every model predicted by what the others teach")


def front_table(found: Sequence[SearchResult]) -> Table:
    """One row a plan: sizes, what is predicted, and what was measured beside the uniform plan of the same size. Full precision comes last."""
    rows: list[dict[str, Any]] = []
    for plan in found:
        predicted = plan.predicted
        row: dict[str, Any] = {
            "bits_per_weight": plan.plan.bits_per_weight,
            "size_bytes": plan.plan.size_bytes,
            f"predicted {predicted['metric']}": f"{number(predicted['value'])} ± {number(predicted['std'])}",
            "uniform predicted": number(plan.uniform_predicted["value"]),
            **({"ms_per_step": predicted["ms_per_step"]} if "ms_per_step" in predicted else {}),
            "solver": plan.solver,
        }
        if plan.measured and plan.uniform_measured and plan.difference_ci:
            name = predicted["metric"]
            row["measured"] = metric(name, plan.measured["metrics"][name])
            row["uniform measured"] = metric(name, plan.uniform_measured["metrics"][name])
            row["worse by, 95 %"] = interval(plan.difference_ci)
        rows.append(row)
    whole = found[0].predicted if found else {}
    if "full_precision" in whole:
        rows.append({f"predicted {whole['metric']}": f"{number(whole['full_precision'])} (full precision)"})
    return rows_table(rows, list(dict.fromkeys(column for row in rows for column in row)))


def diagnosis_table(findings: Sequence[Finding]) -> Table:
    """One row a file that is not as it should be."""
    return rows_table([finding.to_dict() for finding in findings], ["path", "state", "what", "remedy"])


def run_state(state: RunState) -> Group:
    """A line about a run, and a row for each command that is at work in it or was killed."""
    measured = ", ".join(f"{n:,} for {purpose}" for purpose, n in state.n_measured.items()) or "none"
    line = f"{state.subject}, plans measured: {measured}{'' if state.commands else '; nothing is at work'}"
    rows = command_rows(state.commands)
    columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    return Group(Text(line), *([rows_table(rows, columns)] if rows else []))


def metrics_table(result: Mapping[str, Any]) -> Table:
    """One row a metric of an evaluation."""
    rows = [{"metric": name, "value": metric(name, value)} for name, value in result["metrics"].items()]
    return rows_table(rows, ["metric", "value"], title=f"{result['n_images']} images against {result['reference']}")


def forecast_table(content: Mapping[str, Any]) -> Table:
    """What is left of probing: time, memory and disk of each stage, and which settings halve its time."""
    rows = [
        {
            "stage": stage["name"],
            "time": duration(stage["seconds"]),
            "peak memory": f"{stage['memory_bytes'] / 1e9:.1f} GB",
            "disk": f"{stage['disk_bytes'] / 1e6:,.0f} MB" if stage["disk_bytes"] else "",
            "half as much, or twice the workers, halves it": ", ".join(stage["halved_by"]),
        }
        for stage in content["stages"]
    ]
    rows.append({"stage": "together", "time": duration(content["seconds"])})
    return rows_table(rows, list(rows[0]), title=f"{content['n_configs']} probes to measure; times are rough")
