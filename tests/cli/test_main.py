"""The command line: every verb is there, explains itself, and prints what was promised; failures have their exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan
from sedaq.aq.plans.store import EncodingStore
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.cli.main import VERBS, cli, flags_of, main, with_flags
from sedaq.errors import SedaqError
from sedaq.models.loading import load
from sedaq.storage import read_records

from ..builders import unet
from .conftest import Made

PROMISED = {
    "inspect": "--plan --exclude --json",
    "probe": "--run --configs --images --steps --seed --workers --executor --reference --extractor --guidance --prompts --prior --device",
    "fit": "--run --prior --json",
    "learn": "--corpus --metric --trials --seed --json",
    "watch": "--run --every --json",
    "doctor": "--repair --json",
    "search": "--run --front --bits --size --pipeline-size --ms-per-step --pin --keep --tie --min-rate --max-rate --solver --verify --activations --prior --out --json",
    "apply": "--out --run --effort --tune-steps --tune-minutes --tune-trajectories --tune-buffer --activations",
    "evaluate": "--against --images --reference --extractor --guidance --prompts --device --json",
    "bench": "distortion encode kernels model",
    "report": "--run --out",
    "demo": "--out --fresh",
}


def test_the_verbs_are_the_promised_ones() -> None:
    assert set(VERBS) == set(PROMISED) == set(cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize("verb", [*PROMISED, "bench distortion", "bench encode", "bench kernels", "bench model"])
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"Usage: sedaq {verb}")
    for option in PROMISED.get(verb, "--json").split():
        assert option in out


def test_help_says_how_many_trajectories_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    main(["apply", "--help"])
    assert f"learn from. [default: {TuneConfig().n_images}]" in " ".join(capsys.readouterr().out.split())


def test_help_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        assert main([flag]) == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out and sentence[:20] in out for verb, sentence in VERBS.items())


def test_no_arguments_print_the_help_and_say_that_it_was_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: sedaq" in "".join(capsys.readouterr())


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    import sedaq

    assert main(["--version"]) == 0
    assert sedaq.__version__ in capsys.readouterr().out


# -- exit codes --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], list[str]]:
    """Arguments of a command that raises the error given."""

    def arrange(error: BaseException) -> list[str]:
        def fail(*_: object, **__: object) -> None:
            raise error

        importlib.import_module("sedaq.sensitivity.run")  # imported first under the patch, it would keep it
        monkeypatch.setattr("sedaq.models.loading.load", fail)
        return ["inspect", "anything"]

    return arrange


@pytest.mark.parametrize(
    "error, code, line",
    [
        (SedaqError("the solver stopped"), 1, "sedaq: the solver stopped"),
        (RuntimeError("first\nsecond"), 1, "sedaq: failed with RuntimeError: first (--debug shows where)"),
        (ValueError(), 1, "sedaq: failed with ValueError: (--debug shows where)"),
        (EOFError("no more noise"), 1, "sedaq: failed with EOFError: no more noise (--debug shows where)"),
        (KeyboardInterrupt(), 130, "sedaq: stopped; what is finished is kept, run the same command again to go on"),
    ],
)
def test_failures_are_one_line(failing, error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(failing(error)) == code
    out, err = capsys.readouterr()
    assert (out, err.strip().splitlines()) == ("", [line])  # click breaks the line that ^C stands on


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "x"], ["inspect", "--debug", "x"], ["inspect", "x", "--debug"]])
def test_debug_shows_where_wherever_it_stands(failing, arguments: list[str]) -> None:
    failing(RuntimeError("here"))
    with pytest.raises(RuntimeError, match="here"):
        main(arguments)


def test_loading_a_pipeline_adds_nothing_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler

    DDIMPipeline(unet(widths=(8,)), DDIMScheduler()).save_pretrained(tmp_path / "pipeline")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "pipeline"), "--exclude", "nothing"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# -- what verbs print --------------------------------------------------------------------------------------------------------------------


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert main([*(str(argument) for argument in arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "inspect", made.subject)
    assert result.keys() >= {"n_layers", "n_weights", "size_bytes", "bits_per_weight", "layers"}
    assert result["n_layers"] == 3 and result["n_weights"] == 28 * 32 * 2 + 32 * 32 and result["bits_per_weight"] == 32
    for layer in result["layers"]:
        assert layer.keys() >= {"name", "role", "block", "kind", "shape", "n_weights", "formats"}
        assert all(entry.keys() >= {"format", "bits_per_weight", "size_bytes"} for entry in layer["formats"])
    assert result["kept"] == {"biases of layers": 4 * (32 + 32 + 28)} and result["components"] == {}
    assert main(["inspect", "digits-sd"]) == 0
    assert "other components: text_encoder 0.517 MB, vae 0.873 MB" in capsys.readouterr().out
    assert main(["inspect", made.subject, "--plan", str(made.plan)]) == 0
    out = capsys.readouterr().out
    assert "blocks.0" in out and "of the dense operations" in out and "total" in out
    planned = as_json(capsys, "inspect", made.subject, "--plan", made.plan)
    assert planned["plan"]["operations"]["dense_multiply_adds"] == 28 * (28 * 32 * 2 + 32 * 32), "28 rows of 28 pixels"
    assert all(layer["tokens"] == 28 and layer["operations"]["bytes_read"] > 0 for layer in planned["layers"])


def test_bench_model(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = as_json(capsys, "bench", "model", made.subject, "--images", "2")
    assert row.keys() >= {"subject", "arithmetic", "seconds_per_step", "peak_bytes", "operations", "layers"} and row["peak_bytes"] > 0
    assert main(["bench", "model", made.subject, "--images", "2", "--layers"]) == 0
    out = capsys.readouterr().out
    assert "seconds a step" in out and "blocks.2" in out and "float32" in out
    assert main(["bench", "model", made.subject, "--arithmetic", "float8"]) == 2
    assert "arithmetic 'float8' is unknown" in capsys.readouterr().err


def test_probing_that_adapts_says_why_it_ended(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    probing = ["probe", made.subject, "--run", str(tmp_path / "run"), "--images", "16", "--steps", "2", "--design", "auto", "--configs"]
    assert main([*probing, "10"]) == 0
    assert "10 plans: --configs is reached, the ranking of layers is not stable yet (rank correlation" in capsys.readouterr().out


def test_fit_says_what_it_found(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    assert main(["fit", "--run", str(tmp_path / "run"), "--metric", "feature_distance"]) == 0
    out = capsys.readouterr().out
    assert "feature_distance of 13 probes, out of fold" in out or "feature_distance of 14 probes, out of fold" in out
    assert "gradient score" in out and "noise ceiling" in out and "kendall" in out
    assert main(["fit", "--run", str(tmp_path / "run"), "--metric", "beauty"]) == 2
    assert "no metric 'beauty'" in capsys.readouterr().err


def test_fit(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "fit", "--run", made.run)
    assert result.keys() >= {"n_probes", "spearman", "spearman_ci", "ceiling", "baselines"}
    assert result["n_probes"] == 14
    low, high = result["spearman_ci"]
    assert -1 <= low <= result["spearman"] <= high <= 1 and 0 <= result["ceiling"] <= 1
    assert set(result["baselines"]) >= {"average bits", "summed Hessian error"}


def test_search_and_its_plan(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = {"bits_per_weight", "size_bytes", "predicted", "measured", "uniform_measured", "difference_ci", "solver", "plan"}
    found = as_json(capsys, "search", "--run", made.run, "--bits", "2.5", "--out", tmp_path / "deep" / "p.json")
    assert found.keys() >= keys and found["bits_per_weight"] <= 2.5 and found["measured"] is None
    stored = json.loads((tmp_path / "deep" / "p.json").read_text())
    assert stored["layers"] == found["plan"]["layers"]
    planned = as_json(capsys, "inspect", made.subject, "--plan", tmp_path / "deep" / "p.json")
    assert [layer["planned"] for layer in planned["layers"]] == [layer["format"] for layer in stored["layers"].values()]
    timed = ("search", "--run", made.run, "--subject", made.subject, "--step-images", "2", "--out", tmp_path / "t")
    whole = as_json(capsys, *timed, "--bits", "16", "--ms-per-step", "1e6")
    ms = whole["predicted"]["ms_per_step"]
    quick = as_json(capsys, *timed, "--ms-per-step", ms)
    assert main([*map(str, timed), "--ms-per-step", "1e-6"]) == 2
    assert "the budget of 1e-06 ms a step cannot be met; the least reachable is" in capsys.readouterr().err
    assert 0 < quick["predicted"]["ms_per_step"] <= ms and quick["plan"]["budget"] == {"ms_per_step": ms}
    front = as_json(capsys, "search", "--run", made.run, "--front")
    assert isinstance(front, list) and all(plan.keys() >= keys for plan in front)


@pytest.mark.slow  # that two processes measure what one does is tested quickly in tests/sensitivity/probing
def test_two_workers_lead_to_the_same_plan(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sedaq"])  # what a spawned interpreter would otherwise run again
    run, plan = tmp_path / "run", tmp_path / "plan.json"
    sampling = ["--configs", "14", "--images", "16", "--steps", "2", "--workers", "2"]
    for command in (["probe", made.subject, *sampling], ["fit"], ["search", "--bits", "3", "--out", str(plan)]):
        assert main([*command, "--run", str(run)]) == 0
    stored, expected = (json.loads(path.read_text()) for path in (plan, made.plan))
    assert stored["layers"] == expected["layers"] and stored["provenance"]["solver"] == expected["provenance"]["solver"]


@pytest.mark.slow
def test_bench_search_measures_all_at_equal_bytes(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    arguments = ["--subject", made.subject, "--bits", "3,5", "--images", "16", "--steps", "1", "--verify", "2", "--random", "2"]
    rows = as_json(capsys, "bench", "search", "--run", tmp_path / "run", *arguments)
    methods = {row["method"] for row in rows}
    assert methods >= {"searched", "uniform", "weight-error knapsack", "first and last high", "best of random"}
    assert "one-at-a-time greedy" not in methods, "layers were not measured alone"
    for bits in (3, 5):
        of_budget = {row["method"]: row for row in rows if row["bits"] == bits}
        assert of_budget.keys() == methods
        most = of_budget["uniform"]
        assert all(row["bits_per_weight"] <= most["bits_per_weight"] + 1e-9 <= bits + 1e-9 for row in of_budget.values())
        assert most["over_uniform"] == {"value": 0, "ci": [0, 0]} == of_budget["searched"]["over_searched"]
        for row in of_budget.values():
            low, high = row["excess"]["ci"]
            assert low <= row["excess"]["value"] <= high
            expected = row["fid"] - most["fid"]
            assert row["over_uniform"]["value"] == pytest.approx(expected, abs=1e-6 * (1 + abs(expected)))
    assert as_json(capsys, "bench", "search", "--run", tmp_path / "run", *arguments) == rows, "what was measured is read back"
    assert main(["bench", "search", "--run", str(made.run), "--bits", "two"]) == 2


def test_evaluate(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "evaluate", made.subject, "--against", made.subject, "--images", "16", "--steps", "1")
    assert result.keys() >= {"metrics", "n_images", "seconds"} and result["n_images"] == 16
    assert result["metrics"].keys() >= {"fid", "kid", "psnr"}
    assert all(metric.keys() >= {"value", "se"} for metric in result["metrics"].values())
    assert result["metrics"]["feature_distance"]["value"] == 0


def test_tuning_says_how_it_went_and_warns_of_what_is_spoilt(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = load(pipeline_folder)
    store = EncodingStore(subject, tmp_path / "run", calibration={"n_images": 8, "steps": 2})
    formats = {layer.name: Format.parse("1x4g4") for layer in subject.layers}
    plan = tmp_path / "plan.json"
    Plan.of(subject, formats, encoding=store.identity).save(plan)
    arguments = ["apply", str(pipeline_folder), str(plan), "--tune-steps", "2", "--tune-trajectories", "8"]
    for spoilt, warned in ((0.0, True), (1.0, False)):
        monkeypatch.setattr("sedaq.aq.tuning.tune.SPOILT", spoilt)
        assert main([*arguments, "--out", str(tmp_path / f"out {spoilt}")]) == 0
        printed = capsys.readouterr().out
        found = re.search(r"held-out loss (\S+) before tuning, (\S+) after \d of 2 steps", printed)
        assert found and float(found[2]) <= float(found[1])
        assert ("% of what the denoiser says is still lost" in printed) == warned


def test_arguments_in_messages_become_flags() -> None:
    verb = importlib.import_module("sedaq.cli.search").command
    message = "`ms_per_step` and `run_folder` are flags of `sedaq search`; `unknown` is none"
    assert with_flags(message, flags_of(verb)) == "--ms-per-step and --run are flags of `sedaq search`; `unknown` is none"
    assert flags_of(importlib.import_module("sedaq.cli.bench").command)["repeats"] == "--repeats"


@pytest.mark.parametrize("encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp1252", "latin-1"))])
def test_terminals_that_lack_letters(encoding: str) -> None:
    commands = [["inspect", "mnist-dit"], ["probe", "--help"], ["inspect", "--help"]]
    program = f"from sedaq.cli.main import main\nfor words in {commands}:\n    print('code', main(words), flush=True)"
    settings = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=settings, encoding=encoding, errors="replace")
    *printed, rest = re.split(r"^code 0$", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 0 and "Error" not in done.stderr and not rest.strip()
    assert len(printed) == len(commands) and all(len(text) > 200 for text in printed)


def test_plain_letters_stand_for_others() -> None:
    assert "−0.5 ± 1 × é".encode("ascii", errors="sedaq-plain") == b"-0.5 +- 1 x ?"


def test_an_evaluation_is_kept_in_a_run_for_its_report(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    run, out = str(tmp_path / "run"), str(tmp_path / "small")
    assert main(["apply", made.subject, str(made.plan), "--run", run, "--out", out]) == 0
    assert main(["evaluate", made.subject, "--weights", out, "--keep-in", run, "--images", "16", "--steps", "1"]) == 0
    (row,) = read_records(tmp_path / "run" / "evaluations.jsonl", "evaluation")
    stored = json.loads(made.plan.read_text())
    assert (row["name"], row["size_bytes"], row["tune_steps"]) == ("small", stored["size_bytes"], 0)
    assert main(["report", "--run", run, "--subject", made.subject]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "small" in page and "no evaluations.jsonl yet" not in page


def test_a_plan_that_is_kept_elsewhere_is_the_runs_too(made: Made) -> None:
    assert [path.name for path in (made.run / "plans").glob("*.json")], "made.plan lies outside of the run"
