"""Tunings that were killed go on, and what they keep on disk serves those that it belongs to alone."""

from __future__ import annotations

import dataclasses

import pytest

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.tuning.run import TuningRun
from sedaq.aq.tuning.student import Student
from sedaq.aq.tuning.trajectories import Trajectories
from sedaq.aq.tuning.tune import tune
from sedaq.errors import InputError
from sedaq.models.trace import ReplayBuffer


class _Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [3, 14, 29])
def test_a_killed_tuning_goes_on_bit_for_bit(killed_at, subject, encodings, small, alike, tmp_path, monkeypatch):
    settings = dataclasses.replace(
        small, code_every=3, code_reach=0.3, trust_ratio=0.2, code_share=0.05, ema_decay=0.8, refresh_every=7, weighting="sensitivity"
    )
    whole = tune(subject, encodings, settings)
    original, done = TuningRun.tune_step, []

    def dying(self, step):
        done.append(step)
        if step == killed_at and len(done) == killed_at:
            raise _Killed
        original(self, step)

    monkeypatch.setattr(TuningRun, "tune_step", dying)
    with pytest.raises(_Killed):
        tune(subject, encodings, settings, folder=tmp_path)
    again = tune(subject, encodings, settings, folder=tmp_path)
    assert done[killed_at:] == list(range(killed_at // 10 * 10 + 1, 31)), "from the last checkpoint on"
    assert alike(again, whole)
    done.clear()
    assert alike(tune(subject, encodings, settings, folder=tmp_path), whole) and done == [], "a tuning that is done is read back"


def test_seconds_are_of_all_sittings(subject, encodings, small, tmp_path, monkeypatch):
    now, original = [0.0], TuningRun.tune_step
    monkeypatch.setattr("sedaq.aq.tuning.run.clock", lambda device: now[0])

    def dying(self, step):
        now[0] += 1
        if step == 14 and now[0] == 14:
            raise _Killed
        original(self, step)

    monkeypatch.setattr(TuningRun, "tune_step", dying)
    with pytest.raises(_Killed):
        tune(subject, encodings, small, folder=tmp_path)
    now[0] += 1000
    again = tune(subject, encodings, small, folder=tmp_path, keep_in=tmp_path / "kept")
    assert again.seconds == 30, "up to the last checkpoint, and from there on"
    now[0] += 1000
    assert tune(subject, encodings, small, folder=tmp_path, keep_in=tmp_path / "kept").seconds == 30, "what is read back took as long"


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_without_its_refreshed_trajectories_a_tuning_begins_anew(harm, subject, encodings, small, alike, tmp_path, monkeypatch, caplog):
    settings = dataclasses.replace(small, refresh_every=7)
    whole = tune(subject, encodings, settings)
    original = TuningRun.tune_step

    def dying(self, step):
        if step == 28:
            raise _Killed
        original(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(TuningRun, "tune_step", dying)
        with pytest.raises(_Killed):
            tune(subject, encodings, settings, folder=tmp_path)
    (folder,) = tmp_path.glob("trajectories-*")
    parts = sorted(folder.glob("*.safetensors"))
    assert [path.stem for path in parts] == ["0", "1", "2", "3"]
    if harm == "gone":
        parts[1].unlink()
    else:
        parts[1].write_bytes(parts[1].read_bytes()[:-9])
    assert alike(tune(subject, encodings, settings, folder=tmp_path), whole)
    assert "damaged; the tuning begins anew" in caplog.text and not list(folder.glob("*.safetensors")), "they have served"


def test_refreshes_are_evenly_spread(subject, encodings, small):
    def steps(n: int, every: int) -> list[int]:
        settings = dataclasses.replace(small, steps=n, refresh_every=every)
        return sorted(TuningRun(subject, Student(subject, encodings), trajectories, settings)._refreshes())

    trajectories = Trajectories(subject, small)
    assert steps(30, 7) == [7, 13, 19, 25] and steps(300, 150) == [101, 201] and steps(150, 150) == [76]
    assert steps(149, 150) == steps(300, 0) == []


def test_the_state_of_another_tuning_is_none_of_its_business(subject, encodings, small, alike, tmp_path):
    settings = dataclasses.replace(small, steps=4, check_every=2)
    other = dataclasses.replace(settings, learning_rate=1e-4)
    tune(subject, encodings, settings, folder=tmp_path)
    assert alike(tune(subject, encodings, other, folder=tmp_path), tune(subject, encodings, other))


def test_a_buffer_folder_serves_several_tunings_of_one_model_alone(subject, blocks, encodings, small, tmp_path, monkeypatch):
    settings = dataclasses.replace(small, steps=2, check_every=1)
    first = tune(subject, encodings, settings, buffer_folder=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ReplayBuffer, "record", lambda *_: pytest.fail("it was recorded"))
        other = tune(subject, encodings, dataclasses.replace(settings, learning_rate=1e-4), buffer_folder=tmp_path)
    assert other.losses[0] == first.losses[0] and other.losses != first.losses
    codes = {layer.name: encode(blocks.weight(layer.name), Format.parse("1x3g4")) for layer in blocks.layers}
    with pytest.raises(InputError, match=f"recorded from {subject.name} .*not from {blocks.name}"):
        tune(blocks, codes, settings, buffer_folder=tmp_path)
