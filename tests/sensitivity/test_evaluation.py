"""Evaluations in chunks: one that is stopped goes on, one that is done is read back, and what is another is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.sensitivity import evaluation
from sedaq.sensitivity.evaluation import evaluate
from sedaq.sensitivity.metrics.sample import MIN_IMAGES

HOW = {"n_images": 26, "sampling": SamplingConfig(steps=2), "extractor": "embedded"}
CHUNK = 8


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Two denoisers, and a cache of their own."""
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluation, "CHUNK", CHUNK)
    monkeypatch.setattr(evaluation, "sampled_reference", lambda *how: _reference(*how))
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 4, "sample_size": 28}
    for name in ("full", "other"):
        torch.manual_seed(len(name))
        denoiser = DiTTransformer2DModel(**shape, in_channels=1, num_embeds_ada_norm=1000)
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        denoiser.save_pretrained(tmp_path / name)
        DDIMScheduler().save_pretrained(tmp_path / name)
    yield tmp_path / "full", tmp_path / "other"


_sampled_reference = evaluation.sampled_reference


def _reference(full: Subject, sampling: SamplingConfig, extractor: object, seed: int) -> object:
    return _sampled_reference(full, sampling, extractor, seed, 64)  # type: ignore[arg-type]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(subject, first image, number) of the images that are sampled to be measured."""
    found: list[tuple[str, int, int]] = []
    sample = Subject.sample

    def counted(self: Subject, sampling: SamplingConfig, *, seed: int, start: int = 0, n_images: int) -> torch.Tensor:
        if seed == evaluation.purpose_seed(0, "evaluate"):
            found.append((self.name, start, n_images))
        return sample(self, sampling, seed=seed, start=start, n_images=n_images)

    monkeypatch.setattr(Subject, "sample", counted)
    return found


def without_time(result: dict[str, object]) -> dict[str, object]:
    return {**result, "seconds": None}


def test_chunks_are_never_too_small_to_measure() -> None:
    for n_images in range(8, 1100):
        chunks = evaluation._chunks(n_images)
        assert sum(count for _, count in chunks) == n_images and all(count >= MIN_IMAGES for _, count in chunks)
        assert [first for first, _ in chunks] == [sum(count for _, count in chunks[:i]) for i in range(len(chunks))]


def test_chunks_measure_what_all_images_at_once_do(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full, other = models
    in_chunks = evaluate(other, against=full, **HOW)
    monkeypatch.setattr(evaluation, "CHUNK", 10**6)
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "another"))
    at_once = evaluate(other, against=full, **HOW)
    assert set(in_chunks["metrics"]) == set(at_once["metrics"]) >= {"fid", "fid_excess", "kid", "psnr", "feature_distance"}
    for name, metric in at_once["metrics"].items():
        assert in_chunks["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-2), name


def test_one_that_is_stopped_goes_on_with_the_chunk_that_it_was_at(
    models: tuple[Path, Path], sampled: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full, other = models
    measure = evaluation._Evaluation._evidence

    def stopped(self: object, first: int, count: int, target: object) -> object:
        if first == 2 * CHUNK:
            raise KeyboardInterrupt
        return measure(self, first, count, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation._Evaluation, "_evidence", stopped)
        evaluate(other, against=full, **HOW)
    sampled.clear()
    result = evaluate(other, against=full, **HOW)
    assert sampled == [("full", 16, 10), ("other", 16, 10)], "24 to 25 are too few for a chunk of their own"
    kept = sorted(path.name for path in (tmp_path / "cache" / "evaluations").iterdir())
    assert len(kept) == 2 and kept[1].startswith("reference.") and kept[0].endswith(".json"), "chunks are gone"
    sampled.clear()
    assert evaluate(other, against=full, **HOW) == result and not sampled
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "another"))
    assert without_time(evaluate(other, against=full, **HOW)) == without_time(result) and len(sampled) == 6


@pytest.mark.parametrize("change", ["scheduler", "images", "seed", "steps", "alone"])
def test_what_is_another_evaluation_is_measured(
    change: str, models: tuple[Path, Path], sampled: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    full, other = models
    evaluate(other, against=full, **HOW)
    sampled.clear()
    how = {
        "images": {"n_images": 12},
        "seed": {"seed": 1},
        "steps": {"sampling": SamplingConfig(steps=3)},
        "alone": {"reference": str(next((tmp_path / "cache" / "evaluations").glob("reference.*")))},
    }.get(change, {})
    if change == "scheduler":
        path = other / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.03}))
    result = evaluate(other, against=None if change == "alone" else full, **HOW | how)
    assert bool(sampled) == (change != "seed") and ("psnr" in result["metrics"]) == (change != "alone")


def test_a_result_that_is_damaged_is_measured_again(models: tuple[Path, Path], sampled: list[tuple[str, int, int]], tmp_path: Path) -> None:
    full, other = models
    result = evaluate(other, against=full, **HOW)
    (path,) = (tmp_path / "cache" / "evaluations").glob("*.json")
    path.write_bytes(path.read_bytes()[:-20])
    sampled.clear()
    assert without_time(evaluate(other, against=full, **HOW)) == without_time(result) and sampled


def test_models_in_memory_are_measured_each_time_for_their_weights_may_have_changed(
    models: tuple[Path, Path], sampled: list[tuple[str, int, int]]
) -> None:
    full, other = models
    subject = load(other)
    first = evaluate(subject, against=full, **HOW)
    with torch.no_grad():
        for parameter in subject.denoiser.parameters():
            parameter.mul_(1.1)
    assert evaluate(subject, against=full, **HOW)["metrics"]["fid"] != first["metrics"]["fid"]
