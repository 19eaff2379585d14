"""What a search found, kept in the run's folder: an equal search reads it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ..aq.activations.quantizer import Activation
from ..aq.profiling.step_times import StepTimes
from ..runtime.tasks import json_task
from ..sensitivity.predictor.fitting import predictor_folder
from ..sensitivity.predictor.predictor import PREDICTOR_FILE, Predictor
from ..sensitivity.run import PROBE, TUNED_PROBE, Run, probe_journal
from ..storage import file_sha256, fingerprint
from .config import SearchConfig
from .engine import SearchResult

# Of what was verified (verify.loss_and_distance): other rules chose other plans.
ORDER = "loss beside full precision, then distance of images"


def probe_keys(run: Run, purpose: str) -> list[str]:
    """Of all probes of a purpose."""
    return sorted(record["key"] for record in probe_journal(run.folder).read() if record["purpose"] == purpose)


def found_before(
    run: Run,
    question: Any,
    config: SearchConfig,
    find: Callable[[], list[SearchResult]],
    *,
    predictor: Predictor,
    activations: dict[str, Activation],
    times: StepTimes | None = None,
) -> list[SearchResult]:
    """The result of `find`, from the artifact of an equal search where there is one.

    Equal searches have the question (their budgets), the config, menus, encodings, predictor, probes, step times and rounded inputs in common. A
    search whose studies are to be copied is always done, for the copies are not in the artifact.

    Args:
        predictor: what predicts; where nothing was fitted, no file holds it.
        find: searches now. Plans that it measures are kept apart, so that a search that is cut short goes on where it stopped.
    """
    if config.storage is not None:
        return find()
    file = predictor_folder(run, tuned=config.tuned) / PREDICTOR_FILE
    # The file tells whether plans are tuned; what is not said has no part in the keys of earlier versions either.
    told = {name: value for name, value in asdict(config).items() if name != "tuned" and (name, value) != ("tune_steps", None)}
    key = fingerprint(
        [
            question,
            {**told, "pin": {glob: str(format) for glob, format in config.pinned.items()}},
            run.store.identity,
            {name: [[entry.rate, str(entry.format)] for entry in menu] for name, menu in run.menus.items()},
            file_sha256(file) if file.exists() else fingerprint(predictor.to_json()),
            probe_keys(run, TUNED_PROBE if config.tuned else PROBE),
            None if times is None else [times.tokens, times.dense, times.beyond, times.rest, times.kernel_costs],
            {name: asdict(activation) for name, activation in activations.items()},
            *([ORDER] if config.verify else []),
        ]
    )
    path = run.folder / "searches" / f"{key}.json"

    def make() -> dict[str, Any]:
        return {"found": [result.to_dict() for result in find()]}

    def results(content: Mapping[str, Any]) -> list[SearchResult]:
        return [SearchResult.from_dict(result) for result in content["found"]]

    def check(content: Mapping[str, Any]) -> None:
        for found in results(content):
            for plan in (found.plan, found.uniform):
                plan.validate(run.subject)

    return results(json_task("search", path, "search", make, check=check).result())
