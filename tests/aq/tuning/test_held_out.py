"""Errors of answers on trajectories that were not tuned on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import AS_IS
from sedaq.aq.tuning.held_out import held_out_errors
from sedaq.aq.tuning.trajectories import Trajectories
from sedaq.aq.tuning.tune import tune
from sedaq.aq.tuning.tuned import Tuned


def test_they_are_of_the_full_precision_models_answers(subject, encodings, small, tmp_path: Path) -> None:
    tuned = tune(subject, encodings, small, buffer_folder=tmp_path)
    errors = held_out_errors(subject, {"": tuned}, small, buffer_folder=tmp_path)
    buffer = Trajectories(subject, small, tmp_path).held_out
    call, target = buffer.batch(torch.arange(len(buffer)), torch.device("cpu"))
    with tuned.installed(subject), torch.no_grad():
        wanted = (subject.denoiser(**call).sample - target).square().flatten(1).mean(1)
    assert errors.shape == (len(buffer),)
    torch.testing.assert_close(errors, wanted.double(), rtol=1e-4, atol=1e-9)


def test_their_mean_is_the_loss_that_tuning_reports(subject, encodings, small, tmp_path: Path) -> None:
    tuned = tune(subject, encodings, small, buffer_folder=tmp_path)
    parts = {"before": Tuned(encodings, {}), "after": tuned}
    before, after = (held_out_errors(subject, {"": part}, small, buffer_folder=tmp_path).mean().item() for part in parts.values())
    assert before == pytest.approx(tuned.losses[0][1], rel=1e-3)
    assert after == pytest.approx(tuned.best[1], rel=0.02)  # what is stored is rounded
    assert after < before


def test_full_precision_has_none_but_rounding(subject, small, tmp_path: Path) -> None:
    as_it_is = {layer.name: encode(subject.weight(layer.name), AS_IS) for layer in subject.layers}
    errors = held_out_errors(subject, {"": Tuned(as_it_is, {})}, small, buffer_folder=tmp_path)
    assert 0 <= errors.max() < 1e-5, "answers are recorded in 16 bits"
