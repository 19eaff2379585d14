"""The predictor, and what its fit says."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from .fields import Bits, Count, Inside, Interval, Number, Positive, Record, Size


class Score(Record):
    spearman: Number | None
    kendall: Number | None
    ndcg10: Number | None
    mae: Number | None
    behind: Number | None = None
    behind_ci: Interval | None = None


class Predicted(Record):
    plan_hash: str
    bits_per_weight: Bits
    measured: Number | None
    predicted: Number | None


class Learnt(Record):
    n_probes: Count
    spearman: Number
    low: Number
    high: Number


class Fit(Record):
    metric: str
    probes: str = ""
    n_probes: Count
    n_trees: Size
    tuned_steps: Size = 0
    notes: list[str] = []
    spearman: Number | None
    spearman_ci: Interval | None
    ceiling: Number | None
    ceiling_ci: Interval | None
    baselines: dict[str, Number | None]
    scores: dict[str, Score]
    predictions: list[Predicted]
    sources: dict[str, Number | str | None] = {}
    learning_curve: list[Learnt] = []
    stability: dict[str, Number] = {}
    additivity: dict[str, Number | list[Number]] = {}
    findings: list[str]
    tables: dict[Inside, str] = {}
    run: str = ""


class Tree(Record):
    """Of whose nodes predictor/tree_files.py asks more."""

    left_children: list[int]
    right_children: list[int]
    split_indices: list[int]
    default_left: list[int]
    split_conditions: list[Number]
    base_weights: list[Number]
    sum_hessian: list[Number]
    loss_changes: list[Number]


class Member(Record):
    log_slopes: list[Number]
    exponents: list[Number]
    log_errors: list[Number]
    knots: list[list[Number]]
    bends: list[list[Number]]
    power: Positive
    knee: Positive
    trees: list[Tree] | None


class LearntLayers(Record):
    """What other models taught of the layers."""

    log_slopes: list[Number]
    exponents: list[Positive]
    widths: list[Positive]
    exponent_width: Positive
    level: Positive
    corpus: str


class Layers(Record):
    names: Annotated[list[str], Field(min_length=1)]
    roles: list[str]
    blocks: list[str]
    log_errors: list[Number]
    log_scores: list[Number]
    learnt: LearntLayers | None = None


class Predictor(Record):
    subject: str
    probes: str
    metric: str
    whole: Number
    floor: Positive
    misfit: Annotated[float, Field(ge=0, le=1e3)]
    ridge: Positive
    table: Layers
    members: Annotated[list[Member], Field(min_length=1)]
    run: str = ""

    @model_validator(mode="after")
    def _is_of_one_model(self) -> Predictor:
        table, n = self.table, len(self.table.names)
        lists: list[Any] = [table.roles, table.blocks, table.log_errors, table.log_scores]
        if table.learnt is not None:
            lists += [table.learnt.log_slopes, table.learnt.exponents, table.learnt.widths]
        for member in self.members:
            lists += [member.log_slopes, member.exponents, member.log_errors, member.knots, member.bends]
        if any(len(values) != n for values in lists):
            raise ValueError(f"must hold {n} numbers in each list, one a layer")
        if any([len(row) for row in member.knots] != [len(row) for row in member.bends] for member in self.members):
            raise ValueError("must hold as many bends as knots")
        return self


class Line(Record):
    level: Number
    by_score: Annotated[float, Field(ge=0, le=1e3)]
    by_error: Annotated[float, Field(ge=0, le=1e3)]
    level_alone: Number
    by_error_alone: Annotated[float, Field(ge=0, le=1e3)]


class PriorMember(Record):
    line: Line
    trees: list[Tree]


class TreeSettings(Record):
    n_trees: Annotated[int, Field(ge=0, le=10_000)]
    max_depth: Annotated[int, Field(ge=1, le=6)]
    learning_rate: Positive
    subsample: Positive
    colsample_bytree: Positive
    reg_lambda: Positive
    min_child_weight: Positive


class Prior(Record):
    """What a corpus taught."""

    columns: list[str]
    settings: TreeSettings
    level: Positive
    residual: Positive
    scale: Positive
    models: list[str]
    corpus: str
    quality: dict[str, Any] = {}
    members: Annotated[list[PriorMember], Field(min_length=1, max_length=64)]
