"""Why a layer is thought to be sensitive: what each of its properties adds to the prior's prediction, exactly.

The line's parts are what they are; the trees' come from xgboost's own SHAP values (pred_contribs, Lundberg et al. 2018), the columns of a property together. All
of them and the rest sum to the prediction. Factors are relative to the other layers of the model at the same rate: exp(contribution − its mean).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xgboost

from ..predictor.additive import Array
from .model import Z90, LearntPrior
from .properties import PROPERTIES, as_numbers, columns

REST = "rest"  # of the prediction, the same for all rows but for layers without a score
CLEAR = 1.15  # a factor that is worth a word, or its inverse
N_REASONS = 3  # of a layer, in a sentence
N_BINS = 10  # of a property's values


def contributions(prior: LearntPrior, table: pd.DataFrame) -> Array:
    """(members, rows, properties + 1) in logarithms of the effect, in the order of PROPERTIES, then the rest; together exactly the predictions."""
    names, x = list(PROPERTIES), as_numbers(table)
    of_columns = _by_property(names)
    log_errors, log_scores = table["output_error"].to_numpy(float), table["gradient_score"].to_numpy(float)
    found = np.zeros((len(prior.members), len(table), len(names) + 1))
    for own, member in zip(found, prior.members, strict=True):
        by_error, by_score = member.line.parts(log_errors, log_scores)
        own[:, names.index("output_error")], own[:, names.index("gradient_score")] = by_error, by_score
        own[:, -1] = member.line.levels(log_scores)
        if member.trees is not None:
            shap = member.trees.get_booster().predict(xgboost.DMatrix(x, nthread=1), pred_contribs=True)
            own[:, :-1] += shap[:, :-1] @ of_columns
            own[:, -1] += shap[:, -1]
    return found


def interactions(prior: LearntPrior, table: pd.DataFrame) -> pd.DataFrame:
    """For each pair of properties how much they do together beyond what each does alone: the mean size of the trees' SHAP interaction over rows, the
    greatest first. The line has none."""
    names, x = list(PROPERTIES), as_numbers(table)
    of_columns, total = _by_property(names), np.zeros((len(names), len(names)))
    for member in prior.members:
        if member.trees is not None:
            pairs = member.trees.get_booster().predict(xgboost.DMatrix(x, nthread=1), pred_interactions=True)[:, :-1, :-1]
            together = np.einsum("rij,ip,jq->rpq", pairs, of_columns, of_columns, optimize=True)
            total += np.abs(together).mean(0) / len(prior.members)
    first, second = np.triu_indices(len(names), 1)
    rows = pd.DataFrame(
        {"property": [names[i] for i in first], "other": [names[j] for j in second], "interaction": 2 * total[first, second]}
    )
    return rows.sort_values("interaction", ascending=False, kind="stable", ignore_index=True)


def _by_property(names: list[str]) -> Array:
    """(columns, properties) which columns belong to which property."""
    return np.array([[float(owner == name) for name in names] for owner, _ in columns().values()])


def summary(prior: LearntPrior, table: pd.DataFrame) -> pd.DataFrame:
    """One row a property, the most important first: mean size of its contribution over all rows, with a 90 % interval over members, and its direction.

    direction: rank correlation of the property's value and its contribution, NaN for names; names: for such, the contribution of each, by name.
    """
    from ..predictor.cross_validation import spearman

    found = contributions(prior, table)
    centred = found - found.mean(1, keepdims=True)
    rows = []
    for place, (name, one) in enumerate(PROPERTIES.items()):
        size, own = np.abs(centred[:, :, place]).mean(1), centred[:, :, place].mean(0)
        low, high = _interval(size)
        by_name = pd.Series(own).groupby(table[name].to_numpy(object)).mean().to_dict() if one.names else {}
        values = np.zeros(len(table)) if one.names else table[name].to_numpy(float)
        known = np.isfinite(values)
        direction = np.nan if one.names or not known.any() else spearman(values[known], own[known])
        said = "; ".join(f"{key} ×{np.exp(value):.2f}" for key, value in sorted(by_name.items(), key=lambda pair: -pair[1]))
        rows.append({"property": name, "size": size.mean(), "low": max(low, 0.0), "high": high, "direction": direction, "names": said})
    return pd.DataFrame(rows).sort_values("size", ascending=False, kind="stable", ignore_index=True)


def dependence(prior: LearntPrior, table: pd.DataFrame) -> pd.DataFrame:
    """How the harm of a corpus' layers depends on each property: {property, value, factor, low, high, n_rows}.

    value: a name, or the mean of a bin of values; bins hold equally many rows. factor: by which the property makes rows of that value more harmful than all
    rows are in the mean, with a 90 % interval over members.
    """
    found = contributions(prior, table)[:, :, :-1]
    centred = found - found.mean(1, keepdims=True)
    parts = []
    for place, (name, one) in enumerate(PROPERTIES.items()):
        values = table[name].to_numpy(object if one.names else float)
        bins = _binned(values, bool(one.names))
        logs = np.array([centred[:, rows, place].mean(1) for _, rows in bins]).reshape(len(bins), len(found))
        low, high = _interval(logs.T)
        parts.append(
            pd.DataFrame(
                {
                    "property": name,
                    "value": [value for value, _ in bins],
                    "factor": np.exp(logs.mean(1)),
                    "low": np.exp(low),
                    "high": np.exp(high),
                    "n_rows": [len(rows) for _, rows in bins],
                }
            ).astype({"value": object})
        )
    return pd.concat(parts, ignore_index=True)


def _binned(values: np.ndarray, are_names: bool) -> list[tuple[float | str, np.ndarray]]:
    """Value and rows of each bin, ascending; what is not known is in none."""
    if are_names:
        return [(str(name), np.flatnonzero(values == name)) for name in sorted(set(values))]
    known = np.flatnonzero(np.isfinite(values))
    distinct = np.unique(values[known])
    if len(distinct) <= N_BINS:
        return [(float(value), np.flatnonzero(values == value)) for value in distinct]
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, N_BINS + 1)[1:-1]))
    place = np.searchsorted(edges, values[known], side="right")
    parts = [known[place == number] for number in range(len(edges) + 1)]
    return [(float(values[rows].mean()), rows) for rows in parts if len(rows)]


def factors(prior: LearntPrior, entries: pd.DataFrame) -> pd.DataFrame:
    """Of one model, by layer, rate and property: the property's value, and the factor by which it makes the layer more harmful than the model's layers
    are in the mean at this rate, with a 90 % interval over members. The factors of a layer multiply to its `harm`."""
    found = contributions(prior, entries)[:, :, :-1]
    rates = entries["rate"].to_numpy(float)
    logs = np.empty_like(found)
    for rate in np.unique(rates):
        own = rates == rate
        logs[:, own] = found[:, own] - found[:, own].mean(1, keepdims=True)
    harm = np.exp(logs.sum(2).mean(0))
    parts = []
    for place, name in enumerate(PROPERTIES):
        low, high = _interval(logs[:, :, place])
        parts.append(
            pd.DataFrame(
                {
                    "layer": entries["layer"].to_numpy(object),
                    "rate": rates,
                    "harm": harm,
                    "property": name,
                    "value": entries[name].astype(str).to_numpy(object),
                    "factor": np.exp(logs[:, :, place].mean(0)),
                    "low": np.exp(low),
                    "high": np.exp(high),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _interval(values: Array) -> tuple[Array, Array]:
    """90 % over members, the first axis; the mean itself where there is one member."""
    mean = values.mean(0)
    width = Z90 * values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    return mean - width, mean + width


def sentences(prior: LearntPrior, entries: pd.DataFrame, n_layers: int = 5) -> list[str]:
    """Of the layers that are thought to be most harmful at the lowest rate, what makes them so."""
    lowest = entries[entries["rate"] == entries["rate"].min()].reset_index(drop=True)
    table = factors(prior, lowest)
    harms = table.groupby("layer", sort=False)["harm"].first().sort_values(ascending=False, kind="stable")
    return [
        f"{layer}: by what other models taught, {harm:.2g} times the typical layer{_because(table[table['layer'] == layer])}"
        for layer, harm in harms[:n_layers].items()
    ]


def _because(rows: pd.DataFrame) -> str:
    said = list(_reasons(rows))
    return f", because: {', '.join(said)}." if said else "."


def _reasons(rows: pd.DataFrame) -> Iterator[str]:
    """The properties that raise the harm most, and surely so."""
    clear = rows[(rows["factor"] > CLEAR) & (rows["low"] > 1)].sort_values("factor", ascending=False, kind="stable")
    for row in clear[:N_REASONS].itertuples():
        one = PROPERTIES[str(row.property)]
        name = f"{one.label} {row.value}" if one.names else one.label
        yield f"{name} ×{row.factor:.1f} ({row.low:.1f} to {row.high:.1f})"
