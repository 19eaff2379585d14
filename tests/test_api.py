"""The Python interface as its users write it; on small numbers, for what it finds is tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

import sedaq
from sedaq.sensitivity import evaluation

from .builders import dit, save_denoiser

CONFIGS = 12
REFERENCE = Path(sedaq.__path__[0]) / "models" / "shipped" / "reference" / "test.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def model(folder) -> Path:
    """A small untrained denoiser of images as large as MNIST's, so that the embedded extractor sees them."""
    torch.manual_seed(0)
    denoiser = dit(1000, width=32, sample_size=28)
    for parameter in denoiser.parameters():  # what diffusers begins with zeros shows nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return save_denoiser(denoiser, folder / "model", DDIMScheduler())


@pytest.fixture(scope="module")
def run(folder, model) -> sedaq.Run:
    sampling = sedaq.SamplingConfig(steps=2, guidance=None)
    run = sedaq.Run(folder / "run", model=model, sampling=sampling, images=16, effort="draft", extractor="embedded", reference=REFERENCE)
    return run.probe(configs=CONFIGS, design="stratified")


@pytest.fixture(scope="module")
def found(run) -> sedaq.SearchResult:
    run.fit(metric="fid")
    return run.search(sedaq.Budget(bits=3.0), pin={"proj_out*": "int8"}, verify=2, trials=8, images=16)


def test_a_fit_says_how_good_it_is_and_what_it_found(run) -> None:
    fit = run.fit(metric="fid")
    low, high = fit.spearman_ci
    assert fit.metric == "fid" and -1 <= low <= fit.spearman <= high <= 1
    frame = fit.to_frame()
    assert {"layer", "role"} <= set(frame.columns) and frame["layer"].nunique() == len(run.subject.layers)
    assert fit.to_dict()["n_probes"] == CONFIGS and all(isinstance(text, str) for text in fit.findings)


def test_a_search_keeps_its_budget_and_its_pins(run, found) -> None:
    assert found.plan.bits_per_weight <= 3.0 and found.plan.size_bytes <= found.uniform.size_bytes
    pinned = {str(format) for name, format in found.plan.formats.items() if name.startswith("proj_out")}
    assert pinned == {"int8"}
    assert found.measured is not None and found.uniform_measured is not None and found.difference_ci is not None
    assert set(found.to_dict()) >= {"plan", "size_bytes", "bits_per_weight", "predicted", "measured", "solver"}


def test_a_plan_becomes_a_folder_that_diffusers_loads(run, found, folder) -> None:
    model = run.apply(found.plan, folder / "small", tune=sedaq.TuneConfig(steps=2, n_images=64))
    assert isinstance(model.get_submodule("proj_out_2"), sedaq.AQLinear)
    loaded = DiTTransformer2DModel.from_pretrained(folder / "small")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert (folder / "small" / "diffusion_pytorch_model.safetensors").stat().st_size == found.plan.size_bytes
    result = sedaq.evaluate(
        folder / "small",
        against=folder / "model",
        extractor="embedded",
        reference=REFERENCE,
        images=16,
        sampling=sedaq.SamplingConfig(steps=2),
    )
    assert result.n_images == 16 and result.metrics["fid"]["value"] > 0 and "psnr" in result.metrics
    assert result.to_dict()["steps"] == 2


def test_evaluations_of_a_run_share_full_precision_s_images(run, found, monkeypatch) -> None:
    sampled = []
    original = sedaq.Subject.sample
    monkeypatch.setattr(
        sedaq.Subject,
        "sample",
        lambda *how, **also: (
            (sampled.append(how[0].name) if also["seed"] == evaluation.purpose_seed(0, "evaluate") else None) or original(*how, **also)
        ),
    )
    rows = [
        run.evaluate(name, plan, images=16, steps=2)
        for name, plan in (("full precision", None), ("uniform", found.uniform), ("uniform again", found.uniform))
    ]
    assert sampled == ["model", "uniform"] and rows[2]["metrics"] == rows[1]["metrics"], "of equal files one is measured"
    assert [row["bits_per_weight"] for row in rows] == [32.0, *2 * [found.uniform.bits_per_weight]]
    assert "psnr" in rows[1]["metrics"] and "psnr" not in rows[0]["metrics"]
    assert run.evaluate("uniform", found.uniform, images=16, steps=2) == rows[1] and len(sampled) == 2


def test_a_front_rises_and_the_report_is_a_page(run, found) -> None:
    front = run.front([2.5, 3.5], trials=4)
    assert [result.plan.bits_per_weight <= bits for result, bits in zip(front, (2.5, 3.5), strict=True)] == [True, True]
    assert front[0].plan.size_bytes < front[1].plan.size_bytes
    page = run.report()
    assert page == run.folder / "report.html" and "<html" in page.read_text(encoding="utf-8")


def test_a_folder_opens_without_its_model(run) -> None:
    again = sedaq.Run(run.folder)
    assert again.subject.fingerprint == run.subject.fingerprint and again.sampling == run.sampling
    assert repr(again) == f"Run({str(run.folder)!r}, model='model')"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": 32}, "was begun with n_images = 16, not 32"),
        ({"seed": 1}, "was begun with seed = 0, not 1"),
        ({"sampling": sedaq.SamplingConfig(steps=3)}, "was begun with steps = 2, not 3"),
        ({"sampling": sedaq.SamplingConfig(guidance=2.0)}, "was begun with guidance = None, not 2.0"),
        ({"model": "mnist-unet"}, "was made for model"),
    ],
)
def test_other_settings_are_refused_by_name(run, settings, said) -> None:
    with pytest.raises(sedaq.InputError, match=said):
        sedaq.Run(run.folder, **settings)
    assert sedaq.Run(run.folder, sampling=sedaq.SamplingConfig(batch_size=4)).sampling.batch_size == 4


def test_a_new_run_needs_a_model(folder) -> None:
    with pytest.raises(sedaq.InputError, match="make one with `sedaq probe`, or name its `model`"):
        sedaq.Run(folder / "nothing")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: run.search(sedaq.Budget(bits=2.0), verfy=3), "verfy"),
        (lambda run: run.apply(None, "x", tune_step=240), "tune_step"),
        (lambda run: run.probe(n=3), "'n'"),
        (lambda run: sedaq.Run(run.folder, step=3), "step"),
    ],
)
def test_unknown_keywords_are_refused(run, call, said) -> None:
    with pytest.raises(TypeError, match=said):
        call(run)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sedaq.Budget(), "no budget is given; pass `bits`, `size`, `pipeline_size`, `ms_per_step`"),
        (lambda: sedaq.Budget(bits=-1), "`bits`: got -1; give a number above zero"),
        (lambda: sedaq.Budget(size="2 elephants"), "not a size"),
        (lambda: sedaq.SearchConfig(pin={"*": "9y"}), "9y"),
        (lambda: sedaq.SearchConfig(verify=-1), "`verify`: got -1; give 0 or more"),
        (lambda: sedaq.SearchConfig(keep="proj_out"), "`keep`: got one text; give a list of globs"),
        (lambda: sedaq.SearchConfig(activation_schemes=("token",)), "they are for `activations`"),
    ],
)
def test_what_cannot_be_is_refused(make, said) -> None:
    with pytest.raises(sedaq.InputError, match=said):
        make()


def test_sizes_are_numbers_or_text() -> None:
    assert sedaq.Budget(size=700_000).size_bytes == sedaq.Budget(size="700kB").size_bytes == 700_000
    assert sedaq.Budget(bits=2, pipeline_size="1MiB").pipeline_bytes == 2**20


def test_a_model_is_inspected_without_a_run(found, model) -> None:
    seen = sedaq.inspect(model)
    assert seen["n_layers"] == len(seen["layers"]) and seen["size_bytes"] == (model / "diffusion_pytorch_model.safetensors").stat().st_size
    assert sedaq.inspect(model, found.plan)["plan"]["size_bytes"] == found.plan.size_bytes


@pytest.mark.slow
def test_the_text_of_the_design_runs(tmp_path, monkeypatch) -> None:
    """On a shipped model, as a user would write it."""
    monkeypatch.chdir(tmp_path)
    run = sedaq.Run("runs/dit", model="mnist-dit", sampling=sedaq.SamplingConfig(steps=10, guidance=None), executor="processes:2")
    run.probe(configs=12, design="stratified")
    fit = run.fit(metric="fid")
    assert fit.spearman > 0.5 and len(fit.to_frame()) and fit.findings
    best = run.search(sedaq.Budget(bits=2.0), pin={"proj_out*": "int8"}, verify=3)
    assert best.measured["metrics"]["fid"]["value"] <= best.uniform_measured["metrics"]["fid"]["value"]
    model = run.apply(best.plan, "small", tune=sedaq.TuneConfig(steps=20))
    run.report("report.html")
    assert sedaq.evaluate("small", against="mnist-dit", images=200).metrics["fid"]["value"] > 0
    loaded = DiTTransformer2DModel.from_pretrained("small")
    assert loaded.state_dict().keys() == model.state_dict().keys()
