"""A run's rows, tables of several models, and files of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sedaq.errors import DamagedError, InputError
from sedaq.sensitivity.prior import corpus
from sedaq.sensitivity.prior.corpus import COLUMNS, check, known_entries, merged, read_corpus, rows_of, write_corpus
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.probing.probes import excess
from sedaq.sensitivity.run import TUNED_PROBE, Run, probe_journal

from .synthetic import synthetic_corpus


def test_rows_are_what_the_additive_model_says_of_layers_alone(run: Run) -> None:
    table = rows_of(run)
    n_entries = sum(entry.format.kind != "asis" for menu in run.menus.values() for entry in menu)
    assert list(table) == list(COLUMNS) and len(table) == n_entries == len(known_entries(run)[0])
    assert set(table["fingerprint"]) == {run.subject.model_fingerprint} and table["full_precision"].nunique() == 1
    assert (table["se"] >= 0).all() and (table["effect"] > 0).all() and (table["error"] > 0).all()
    ascending = table.sort_values(["layer", "error"])
    assert (ascending.groupby("layer")["effect"].diff().dropna() >= 0).all(), "more error is never less harm"
    assert table["se"].max() > 0 and not np.allclose(table["half_1"], table["half_2"])
    pd.testing.assert_frame_equal(table, rows_of(run))


def test_every_plan_that_was_measured_counts_but_for_tuned_ones(run: Run) -> None:
    n_plans = rows_of(run)["n_plans"].unique().item()
    plans = design_plans("layer", run.subject.layers, run.menus, n_plans=1 + len(run.subject.layers), seed=0)
    with Measurer(Prober(run), "serial") as measurer:
        list(measurer.measure([PlanTask(plan, 32, "truth") for plan in plans]))
        list(measurer.measure([PlanTask(plans[1], 32, TUNED_PROBE, tuned_steps=2)]))
    hashes = {record["plan_hash"] for record in probe_journal(run.folder).read() if record["purpose"] != TUNED_PROBE}
    table = rows_of(run)
    assert set(table["n_plans"]) == {len(hashes)} and len(hashes) > n_plans
    layer = next(name for name, format in plans[1].items() if format.kind != "asis")
    (record,) = [r for r in probe_journal(run.folder).read() if r["layers"][layer] != "asis" and r["purpose"] == "truth"]
    lowest = table[table["layer"] == layer].nlargest(1, "error").iloc[0]
    value, se = excess(record, "fid", [record])[:2]
    assert abs(lowest["effect"] - value) < 4 * max(se, lowest["se"])


def test_a_run_that_measured_too_little_is_refused_in_a_line(run: Run) -> None:
    journal = run.folder / "probes.jsonl"
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines()[:5]))
    with pytest.raises(InputError, match=r"holds 5 measured plans, a corpus needs 12; run `sedaq probe`") as caught:
        rows_of(run)
    assert "\n" not in str(caught.value)


# -- several models ----------------------------------------------------------------------------------------------------------------------


def test_newer_rows_of_a_model_take_the_place_of_older_ones() -> None:
    old = synthetic_corpus(2)
    newer = old[old["model"] == "model 1"].assign(effect=7.0)
    table = merged([old, newer])
    assert len(table) == len(old) and set(table["effect"][table["model"] == "model 1"]) == {7.0}
    assert (table["effect"][table["model"] == "model 0"] != 7.0).all()


def test_models_of_one_name_are_told_apart_and_one_model_is_not_split() -> None:
    table = synthetic_corpus(3).assign(model="unet")
    once = merged([table])
    assert once["model"].nunique() == 3 and once["model"].str.startswith("unet (").all()
    assert list(merged([once])["model"]) == list(once["model"])
    assert set(merged([table[table["fingerprint"] == table["fingerprint"][0]]])["model"]) == {"unet"}


# -- files -------------------------------------------------------------------------------------------------------------------------------


def test_a_written_corpus_comes_back_as_it_was(tmp_path: Path) -> None:
    table = synthetic_corpus(2)
    table.loc[3, "output_norm"] = np.nan
    write_corpus(tmp_path / "inner" / "corpus.parquet", table)
    pd.testing.assert_frame_equal(read_corpus(tmp_path / "inner" / "corpus.parquet"), table)
    header = pd.read_parquet(tmp_path / "inner" / "corpus.parquet").attrs["sedaq"]
    assert (header["kind"], header["schema"]) == ("corpus", 1) and len(header["fingerprint"]) == 16
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["corpus.parquet"]


WRONG = {
    "column 'effect' is missing": lambda table: table.drop(columns="effect"),
    "column 'colour' is not one of a corpus": lambda table: table.assign(colour=1.0),
    "column 'effect' is not finite in row 2": lambda table: table.assign(effect=table["effect"].where(table.index != 2)),
    "column 'se' is -1 in row 1": lambda table: table.assign(se=table["se"].where(table.index != 1, -1.0)),
    "column 'full_precision' is 0 in row 0": lambda table: table.assign(full_precision=0.0),
    "column 'error' must hold numbers": lambda table: table.assign(error="much"),
    "column 'role' must hold texts": lambda table: table.assign(role=1.0),
    "holds no row": lambda table: table[:0],
}


@pytest.mark.parametrize("said", WRONG)
def test_a_table_that_is_no_corpus_is_refused_in_a_line_and_nothing_is_written(said: str, tmp_path: Path) -> None:
    table = WRONG[said](synthetic_corpus(2))
    with pytest.raises(InputError, match=said) as caught:
        write_corpus(tmp_path / "corpus.parquet", table)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=said):
        check(table, "corpus")


def test_an_older_schema_a_change_and_damage_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, table = tmp_path / "corpus.parquet", synthetic_corpus(2)
    with pytest.raises(InputError, match="is not there; make it by `sedaq learn`"):
        read_corpus(path)
    monkeypatch.setattr(corpus, "SCHEMA", 0)
    write_corpus(path, table)
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="field 'schema' is 0 where 1 is expected"):
        read_corpus(path)
    write_corpus(path, table)
    attrs = pd.read_parquet(path).attrs
    changed = table.assign(effect=table["effect"] + 1)
    changed.attrs = attrs
    changed.to_parquet(path)
    with pytest.raises(DamagedError, match="field 'fingerprint' does not match its rows"):
        read_corpus(path)
    table.to_parquet(path)
    with pytest.raises(DamagedError, match="field 'kind' is None where 'corpus' is expected"):
        read_corpus(path)
    path.write_bytes(b"PAR1" + b"0" * 50)
    with pytest.raises(DamagedError, match="not a whole Parquet file") as caught:
        read_corpus(path)
    assert "\n" not in str(caught.value)
