"""Menus by measurement: for every layer and rate the format of least error whose total is within the rate, or a faster one that is as good.

The rule of menu.py names a few formats; each is tried at draft effort on some of the layer's rows, under its own Hessian. Layers of one role
may share codebooks, which then cost each a part only: that is taken where the layers' errors are less on average (of logarithms) than with
their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ...models.layers import EMBEDDING, Layer
from ...progress import track
from ...runtime.tasks import Task, json_task
from ...storage import fingerprint
from ..encoder.encoder import encode_objective
from ..encoder.objective import Objective
from ..formats import Format
from .menu import Entry, candidates, cheapest, layer_menu, predicted_bits, slowness
from .store import EncodingStore, book_name, is_large

N_OWN = 4  # formats tried for a layer and rate
WORTH_SHARING = 0.03  # bits that shared codebooks must promise above the layers' own before they are tried
MIN_GAIN = 0.02  # by which the errors must then be less
N_ROWS = 256  # of a layer that a format is tried on
AS_GOOD = 0.02  # more error than the least: then kernels' speed decides (benchmarks/fast_menus.py)
_EFFORT = "draft"

Choices = dict[float, tuple[Format, float]]  # by rate: the format and its error


def measured_menus(store: EncodingStore, rates: Sequence[float]) -> dict[str, tuple[Entry, ...]]:
    """The menu of every layer; what was measured before is read from the store's folder."""
    store.calibrate()
    layers, rates = store.subject.layers, tuple(sorted(rates))
    items = [(layer, rates) for layer in layers]
    missing = [item for item in items if not own_menu(store, *item).is_done]
    total, left = (sum(layer.n_weights for layer, _ in some) for some in (items, missing))
    measured = store.make(own_menu, missing, alone=lambda layer, _: is_large(layer))
    for _ in track(measured, "menus", total, done=total - left, cost=lambda item: item[0].n_weights):
        pass
    own = {layer.name: own_choices(store, layer, rates) for layer in layers}
    roles: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        roles.setdefault((book_name(layer), _family(layer)), []).append(layer)
    several = [(members, rate, rates) for members in roles.values() if len(members) > 1 for rate in rates]
    untried = [item for item in several if not shared_menu(store, *item).is_done]
    for _ in track(store.make(shared_menu, untried), "shared codebooks", len(several), done=len(several) - len(untried)):
        pass
    for members, rate, _ in several:
        format = shared_choice(store, members, rate, rates)
        if format is not None:
            for layer in members:
                own[layer.name][rate] = (format, math.nan)
    return {
        layer.name: layer_menu(store.subject, layer, {rate: format for rate, (format, _) in own[layer.name].items()}) for layer in layers
    }


def _family(layer: Layer) -> str:
    """What of one role may share codebooks, as the names of their files have it."""
    return {"linear": "", EMBEDDING: "embeddings."}.get(layer.kind, "convolutions.")


def best_format(objective: Objective, rate: float, *, seed: int = 0, limit: int = N_OWN) -> Format:
    """The format of least error at draft effort within `rate` total bits, of the `limit` most promising.

    Raises InputError where none is within the rate.
    """
    formats = candidates(rate, (objective.shape,), limit)
    if not formats:
        raise InputError(f"no format of a weight of shape {objective.shape} is within {rate:g} bits; allow more")
    drawn = drawn_rows(objective, seed)
    return min(formats, key=lambda format: draft_error(drawn, format, seed=seed))


def as_good(formats: Sequence[Format], errors: Mapping[Format, float]) -> Format:
    """Of the formats whose error is within AS_GOOD of the least the fastest; of equally fast ones that of least error."""
    lowest = min(errors[format] for format in formats)
    near = [format for format in formats if errors[format] <= (1 + AS_GOOD) * lowest]
    return min(near, key=lambda format: (slowness(format), errors[format]))


def drawn_rows(objective: Objective, seed: int) -> Objective:
    """That of at most N_ROWS rows drawn at random, which formats are tried on."""
    n_groups, n_rows = objective.matrix.shape[:2]
    if n_groups > 1 or n_rows <= N_ROWS:
        return objective
    return objective.of_rows(torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))[:N_ROWS])


def draft_error(objective: Objective, format: Format, *, seed: int = 0, book: Mapping[str, torch.Tensor] | None = None) -> float:
    """Relative output error at draft effort."""
    return encode_objective(objective, format, effort=_EFFORT, seed=seed, book=book).error


def _path(store: EncodingStore, name: str, layers: Sequence[Layer], rates: Sequence[float]) -> Path:
    """A run keeps the menus that it began with, those of version 0.1.0 too, which knew no AS_GOOD."""
    now = [N_OWN, N_ROWS, WORTH_SHARING, MIN_GAIN, AS_GOOD, _EFFORT, *rates]
    first = [N_OWN, N_ROWS, WORTH_SHARING, MIN_GAIN, _EFFORT, *rates]
    names = [layer.name for layer in layers]
    paths = [store.folder / "menus" / f"{name}.{store.key(names, fingerprint(rule))}.json" for rule in (now, first)]
    return next((path for path in paths if path.exists()), paths[0])


def own_menu(store: EncodingStore, layer: Layer, rates: Sequence[float]) -> Task[dict[str, Any]]:
    """Chooses the best format with codebooks of the layer's own for every rate."""

    def make() -> dict[str, Any]:
        tried: dict[Format, float] = {}
        chosen: dict[str, dict[str, Any]] = {}
        best: Format | None = None
        objective = drawn_rows(store.objective(layer), store.seed)
        for rate in rates:
            formats = candidates(rate, (layer.shape,), N_OWN) or (best or cheapest(layer.shape),)
            for format in formats:
                if format not in tried:
                    tried[format] = draft_error(objective, format, seed=store.seed)
            best = min((*formats, best or formats[0]), key=tried.__getitem__)  # what fits a lower rate fits this one
            taken = as_good((*formats, best), tried)
            chosen[repr(rate)] = {"format": str(taken), "error": tried[taken]}
        return {"chosen": chosen, "tried": {str(format): error for format, error in tried.items()}}

    def check(content: Mapping[str, Any]) -> None:
        formats = {float(rate): Format.parse(choice["format"]) for rate, choice in content["chosen"].items()}
        if formats.keys() != set(rates) or not all(format.fits(layer.shape) for format in formats.values()):
            raise InputError(f"it is no menu of layer {layer.name} at these rates")

    path = _path(store, layer.name, [layer], rates)
    return json_task(f"menu of {layer.name}", path, "menu", make, model="menu of a layer", check=check)


def own_choices(store: EncodingStore, layer: Layer, rates: Sequence[float]) -> Choices:
    """What `own_menu` chooses."""
    content = own_menu(store, layer, rates).result()["chosen"]
    return {float(rate): (Format.parse(choice["format"]), choice["error"]) for rate, choice in content.items()}


def shared_menu(store: EncodingStore, members: Sequence[Layer], rate: float, rates: Sequence[float]) -> Task[dict[str, Any]]:
    """Chooses the format with codebooks that all `members` share at a rate, or none where their own are better."""
    name = book_name(members[0])
    kind = _family(members[0])
    path = _path(store, f"{name}.{kind}{rate:g}", members, [float(rate) for rate in rates])

    def make() -> dict[str, Any]:
        chosen, gain = None, None
        before = [own_choices(store, layer, rates)[rate] for layer in members]
        owned = [predicted_bits(format, layer.n_weights) for (format, _), layer in zip(before, members, strict=True)]
        format = _candidate(rate, members)
        if format and predicted_bits(format, sum(layer.n_weights for layer in members)) >= sum(owned) / len(owned) + WORTH_SHARING:
            format = replace(format, book=name)
            book = store.fit_book(format, effort=_EFFORT)
            errors = [
                draft_error(drawn_rows(store.objective(member), store.seed), format, seed=store.seed, book=book) for member in members
            ]
            logs = [math.log(max(old, 1e-12) / max(new, 1e-12)) for (_, old), new in zip(before, errors, strict=True)]
            gain = sum(logs) / len(logs)
            chosen = str(format) if gain > MIN_GAIN else None
        return {"chosen": chosen, "tried": str(format), "gain": gain}

    def check(content: Mapping[str, Any]) -> None:
        if content["chosen"] and not all(Format.parse(content["chosen"]).fits(member.shape) for member in members):
            raise InputError(f"it is no menu of the layers of {name}")

    return json_task(f"menu of {name} at {rate:g} bits", path, "menu", make, model="menu of a role", check=check)


def shared_choice(store: EncodingStore, members: Sequence[Layer], rate: float, rates: Sequence[float]) -> Format | None:
    """What `shared_menu` chooses."""
    found = shared_menu(store, members, rate, rates).result()["chosen"]
    return Format.parse(found) if found else None


def _candidate(rate: float, members: Sequence[Layer]) -> Format | None:
    """The most promising format that all can share."""
    same_taps = len({layer.shape[2:] for layer in members}) == 1
    found = candidates(rate, tuple(layer.shape for layer in members), 2)  # a convolution's two groupings
    return next((format for format in found if same_taps or format.grouping != "t"), None)
