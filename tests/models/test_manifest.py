"""Folders that sedaq wrote: one flipped bit is noticed, and so is a word that the user added."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sedaq import Budget, InputError, Run, SamplingConfig, load, uniform_plan
from sedaq.models.manifest import MANIFEST_FILE, manifest_bytes

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("manifest")
    return Run(folder / "run", "digits-sd", sampling=SamplingConfig(steps=2), images=8, calibration_images=8, calibration_steps=2)


@pytest.fixture(scope="module")
def written(run: Run) -> Path:
    out = run.folder.parent / "out"
    run.apply(uniform_plan(run.subject, Budget(bits=2.0)), out)
    return out


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "out"))


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def test_a_whole_folder_is_loaded(out: Path) -> None:
    assert load(out, quantized=True).name == "out"
    names = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != MANIFEST_FILE]
    assert manifest_bytes(names) == (out / MANIFEST_FILE).stat().st_size


@pytest.mark.parametrize("place", [0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "name",
    [
        f"unet/{WEIGHTS}",
        f"vae/{WEIGHTS}",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/quantization_plan.json",
        MANIFEST_FILE,
    ],
)
def test_a_flipped_bit_is_noticed(name: str, place: float, out: Path) -> None:
    flip(out / name, place * (0.97 if name.endswith("json") else 1))
    with pytest.raises(InputError) as raised:
        load(out, quantized=True)
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_is_named(out: Path) -> None:
    (out / "vae" / WEIGHTS).unlink()
    with pytest.raises(InputError, match=f"vae/{WEIGHTS}: is missing; delete the folder and apply the plan again"):
        load(out, quantized=True)


def test_who_changed_it_himself_may_say_so(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = out / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(InputError, match="SEDAQ_VERIFY=0 if you changed it yourself"):
        load(out, quantized=True)
    monkeypatch.setenv("SEDAQ_VERIFY", "0")
    assert load(out, quantized=True).name == "out"


def test_a_card_and_a_scheduler_may_be_edited(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(out, quantized=True)
    assert "images are sampled as it says now" not in caplog.text
    for name in ("README.md", "scheduler/scheduler_config.json"):
        (out / name).write_text((out / name).read_text() + "\n")
    assert load(out, quantized=True).name == "out"
    assert caplog.text.count("scheduler_config.json: is not as sedaq wrote it; images are sampled as it says now") == 1


USER: dict[str, Callable[[Path], object]] = {
    "NOTES.md": lambda out: (out / "NOTES.md").write_text("mine"),
    "README.md": lambda out: (out / "README.md").write_text((out / "README.md").read_text() + "my words"),
    "mine": lambda out: (out / "mine").mkdir(),
    "link": lambda out: (out / "link").symlink_to(out / "README.md"),
    "unet/mine.txt": lambda out: (out / "unet" / "mine.txt").write_text("mine"),
}


@pytest.mark.parametrize("name", USER)
def test_what_the_user_added_or_changed_stays(name: str, run: Run, out: Path) -> None:
    USER[name](out)
    with pytest.raises(InputError, match=f"holds {name}, which sedaq did not write"):
        run.apply(uniform_plan(run.subject, Budget(bits=3.0)), out)
    assert (out / name).exists()
