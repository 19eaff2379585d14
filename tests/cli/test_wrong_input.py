"""Wrong input: exit code 2, one line that names the culprit and the remedy, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sedaq.cli.main import main

from .conftest import Made

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def nothing_is_written(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No test here may change the run, nor leave anything in the folder that it works in."""

    def listing(folder: Path) -> dict[str, tuple[int, int]]:
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    monkeypatch.chdir(tmp_path)
    before = listing(made.run.parent)
    yield
    assert listing(made.run.parent) == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("given")] == []


def given(tmp_path: Path, text: str, name: str = "given.json") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


# -- verbs and options -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, culprit, remedy",
    [
        (["quantise"], "'quantise'", "See `sedaq --help`"),
        (["inspect", "mnist-dit", "--colour"], "--colour", "See `sedaq inspect --help`"),
        (["inspect"], "'SUBJECT'", "See `sedaq inspect --help`"),
        (["probe", "mnist-dit"], "'--run'", "See `sedaq probe --help`"),
        (["probe", "mnist-dit", "--run", "r", "--images", "7"], "--images", "8 or more"),
        (["probe", "mnist-dit", "--run", "r", "--metric", "beauty"], "'beauty'", "choose one of fid"),
        (["probe", "mnist-dit", "--run", "r", "--configs", "many"], "'many'", "See `sedaq probe --help`"),
        (["probe", "mnist-dit", "--run", "r", "--workers", "0"], "'--workers'", "See `sedaq probe --help`"),
        (["probe", "mnist-dit", "--run", "r", "--workers", "2", "--executor", "serial"], "--workers N is short for", "give one of them"),
        (["probe", "mnist-dit", "--run", "r", "--executor", "threads:2"], "executor 'threads:2' is unknown", "'ray://HOST:PORT'"),
        (
            ["search", "--run", "r", "--bits", "2", "--executor", "ray://127.0.0.1:1"],
            "ray://127.0.0.1:1': nothing answers",
            "10001 by default",
        ),
        (["probe", "mnist-dit", "--run", "r", "--design", "all"], "--design 'all'", "stratified, layer, role, block"),
        (["bench", "speed"], "'speed'", "--help`"),
        (["bench", "kernels", "--tokens", "1,two"], "--tokens '1,two'", "whole numbers"),
        (["bench", "kernels", "--tokens", "0"], "--tokens '0'", "whole numbers"),
        (["bench", "kernels", "--formats", "asis"], "--formats 'asis'", "such as 2x8g8"),
        (["bench", "encode", "--shapes", "wide"], "--shapes 'wide'", "OUTxIN in whole numbers"),
        (["bench", "encode", "--shapes", "8x-4"], "--shapes '8x-4'", "OUTxIN in whole numbers"),
        (["bench", "encode", "--bits", "2,0"], "--bits '2,0'", "numbers above zero"),
        (["bench", "encode", "--efforts", "fast,heroic"], "'heroic'", "fast"),
        (["bench", "distortion", "--formats", "2y8"], "'2y8'", "2x8g8"),
        (["bench", "distortion", "--effort", "heroic", "--size", "64"], "'heroic'", "fast"),
    ],
)
def test_verbs_and_options(refused: Refused, arguments: list[str], culprit: str, remedy: str) -> None:
    message = refused(*arguments)
    assert culprit in message and remedy in message


@pytest.mark.parametrize("verb", [["inspect"], ["probe", "--run", "r"], ["evaluate"], ["bench", "model"]])
@pytest.mark.parametrize("subject", ["mnist-dot", "somewhere/absent/here", "absent.py:make"])
def test_unknown_subjects(refused: Refused, verb: list[str], subject: str) -> None:
    message = refused(*verb, subject)
    assert subject.split(":")[0] in message and "pass " in message


def test_devices(refused: Refused) -> None:
    message = refused("probe", "mnist-dit", "--run", "r", "--device", "abacus")
    assert "--device abacus" in message and "pass cpu" in message


# -- inspect and probe -------------------------------------------------------------------------------------------------------------------


def test_globs_that_match_nothing(refused: Refused, made: Made) -> None:
    assert "--exclude conv*: no Linear or Conv layer" in refused("inspect", made.subject, "--exclude", "conv*")
    assert "--exclude conv*" in refused("probe", made.subject, "--exclude", "conv*", "--run", "r")


def test_a_missing_extractor_leaves_no_run_behind(refused: Refused, made: Made) -> None:
    message = refused("probe", f"{made.file}:without_extractor", "--run", "r")
    assert "subject blind has no extractor" in message and "--extractor" in message


@pytest.mark.parametrize(
    "option, value, culprit",
    [
        ("--extractor", "nose", "'nose'"),
        ("--reference", "absent.npz", "absent.npz"),
        ("--prompts", "absent.txt", "absent.txt: cannot be read"),
    ],
)
def test_unusable_settings_of_a_probe_leave_no_run_behind(refused: Refused, made: Made, option: str, value: str, culprit: str) -> None:
    assert culprit in refused("probe", made.subject, "--run", "r", option, value)


def test_prompts_for_a_subject_without(refused: Refused, made: Made, tmp_path: Path) -> None:
    prompts = given(tmp_path, "a cat\n", "given.txt")
    assert "takes no prompts; leave --prompts out" in refused("probe", made.subject, "--run", "r", "--prompts", prompts)
    empty = given(tmp_path, "\n", "given2.txt")
    assert "holds no prompts" in refused("probe", made.subject, "--run", "r", "--prompts", empty)


@pytest.mark.parametrize(
    "options, name",
    [(["--images", "24"], "n_images = 16, not 24"), (["--steps", "3"], "steps = 2, not 3"), (["--seed", "1"], "seed = 0, not 1")],
)
def test_other_settings_on_the_same_run(refused: Refused, made: Made, options: list[str], name: str) -> None:
    settings = {"--images": "16", "--steps": "2", **dict([options])}
    message = refused("probe", made.subject, "--run", made.run, *(word for pair in settings.items() for word in pair))
    assert "run.json" in message and name in message and "another folder for --run" in message


def test_another_subject_on_the_same_run(refused: Refused, made: Made) -> None:
    message = refused("probe", f"{made.file}:wider", "--run", made.run, "--images", "16", "--steps", "2")
    assert "was made for tiny" in message and "start a new run" in message


def test_a_run_folder_that_is_something_else(refused: Refused, made: Made, tmp_path: Path) -> None:
    file = given(tmp_path, "mine")
    assert "given.json" in refused("probe", made.subject, "--run", file, "--images", "16")
    assert "given.json" in refused("probe", made.subject, "--run", file / "deeper", "--images", "16")
    assert file.read_text() == "mine"
    message = refused("probe", made.subject, "--run", made.run / "encodings", "--images", "16")
    assert "is neither empty nor a run; choose another folder" in message


# -- missing runs, predictors, plans -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["fit"], ["search", "--bits", "2"], ["report"]])
def test_a_missing_run(refused: Refused, verb: list[str]) -> None:
    message = refused(*verb, "--run", "absent")
    assert "--run absent: holds no run" in message and "make one with `sedaq probe`" in message


@pytest.mark.usefixtures("nothing_shipped")
def test_a_missing_predictor(refused: Refused, made: Made, tmp_path: Path) -> None:
    run = tmp_path / "given-run"
    run.mkdir()
    (run / "run.json").write_bytes((made.run / "run.json").read_bytes())
    message = refused("search", "--run", run, "--subject", made.subject, "--bits", "2")
    assert "has no predictor, and no prior was learnt" in message and "`sedaq fit`, or teach a prior by `sedaq learn`" in message


@pytest.mark.parametrize("steps", ["0", "-5"])
def test_no_steps_of_tuning(refused: Refused, made: Made, steps: str) -> None:
    message = refused("probe", made.subject, "--run", made.run, "--images", "16", "--steps", "2", "--tuned-steps", steps)
    assert f"--tuned-steps: got {steps}" in message and "give a number above 0" in message


def test_tuning_is_not_forecast(refused: Refused, made: Made) -> None:
    assert "leave out --dry-run and --max-hours" in refused("probe", made.subject, "--run", made.run, "--tuned-steps", "5", "--dry-run")


@pytest.mark.parametrize("verb", [["fit"], ["search", "--bits", "2"]])
def test_a_run_without_tuned_plans(refused: Refused, made: Made, verb: list[str]) -> None:
    message = refused(*verb, "--run", made.run, "--for", "tuned")
    assert "`tuned_steps`" in message and ("holds 0 probes" in message or "no predictor of tuned plans" in message)


def test_long_tunings_of_plans_that_are_not_tuned(refused: Refused, made: Made) -> None:
    message = refused("search", "--run", made.run, "--bits", "2", "--verify", "4", "--tune-steps", "300")
    assert message.startswith("sedaq: --tune-steps: ") and "give --for and --verify, too" in message


def test_too_few_probes(refused: Refused, made: Made, tmp_path: Path) -> None:
    run = tmp_path / "given-run"
    run.mkdir()
    (run / "run.json").write_bytes((made.run / "run.json").read_bytes())
    message = refused("fit", "--run", run, "--subject", made.subject)
    assert "holds 0 probes" in message and "run `sedaq probe` with more `configs`" in message


def test_a_damaged_run(refused: Refused, made: Made, tmp_path: Path) -> None:
    run = tmp_path / "given-run"
    run.mkdir()
    (run / "run.json").write_text((made.run / "run.json").read_text().replace('"seed": 0', '"seed": 1'))
    message = refused("fit", "--run", run)
    assert "run.json: field 'sha256' does not match" in message


DAMAGES = {
    "absent": (None, "cannot be read"),
    "empty": (lambda text: "", "not valid JSON"),
    "cut": (lambda text: text[:-20], "not valid JSON"),
    "edited": (lambda text: text.replace('"size_bytes": ', '"size_bytes": 1'), "field 'sha256'"),
    "schema": (lambda text: text.replace('"schema": 1', '"schema": 9'), "field 'schema' is 9 where 1"),
    "foreign": (lambda text: json.dumps({"layers": {}}), "field 'kind' is None where 'plan'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("verb", ["inspect", "apply"])
def test_a_damaged_plan(refused: Refused, made: Made, tmp_path: Path, damage: str, verb: str) -> None:
    edit, culprit = DAMAGES[damage]
    path = tmp_path / "given.json"
    if edit is not None:
        given(tmp_path, edit(made.plan.read_text()))
    arguments = ["--plan", path] if verb == "inspect" else [path, "--out", "o"]
    message = refused(verb, made.subject, *arguments)
    assert str(path) in message and culprit in message


@pytest.mark.parametrize("subject", ["mnist-dit", "wider"])
@pytest.mark.parametrize("verb", ["inspect", "apply"])
def test_a_plan_for_another_model(refused: Refused, made: Made, subject: str, verb: str) -> None:
    other = subject if subject == "mnist-dit" else f"{made.file}:{subject}"
    arguments = ["--plan", made.plan] if verb == "inspect" else [made.plan, "--out", "o"]
    message = refused(verb, other, *arguments)
    assert "the plan was made for tiny (fingerprint" in message and f"not for {subject}" in message and "search again" in message


# -- search ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, culprit, remedy",
    [
        (["--bits", "0.25"], "0.2", "least"),
        (["--size", "100"], "100", "least"),
        (["--size", "two MB"], "'two MB'", "MB"),
        (["--size", "-5"], "-5", "MB"),
        (["--bits", "nan"], "nan", ""),
        (["--bits", "-1"], "-1", ""),
        ([], "--bits", "--size"),
        (["--bits", "3", "--pin", "*=9x9z9"], "'9x9z9'", "2x8g8"),
        (["--bits", "3", "--pin", "blocks.0"], "'blocks.0'", "GLOB=FORMAT"),
        (["--bits", "3", "--pin", "conv*=int8"], "--pin conv*", "sedaq inspect"),
        (["--bits", "3", "--keep", "conv*"], "--keep conv*", "sedaq inspect"),
        (["--bits", "3", "--tie", "conv*"], "--tie conv*", "sedaq inspect"),
        (["--bits", "3", "--min-rate", "4", "--max-rate", "2"], "--min-rate 4", "exchange them"),
        (["--bits", "3", "--solver", "oracle"], "oracle", "exact"),
        (["--bits", "3", "--keep", "*"], "3", "least"),
        (["--pipeline-size", "2MB"], "--pipeline-size", "use --size"),
        (["--ms-per-step", "0"], "--ms-per-step", "above zero"),
        (["--front", "--ms-per-step", "5"], "--front", "leave out --bits"),
        (["--front", "--bits", "2"], "--front", "leave out --bits"),
        (["--front", "--bits", "0"], "--front", "leave out --bits"),
        (["--front", "--size", "2MB"], "--front", "leave out --bits"),
    ],
)
def test_searches(refused: Refused, made: Made, options: list[str], culprit: str, remedy: str) -> None:
    message = refused("search", "--run", made.run, "--subject", made.subject, *options)
    assert culprit in message and remedy in message


def test_an_impossible_budget_states_the_least_that_is_reachable(refused: Refused, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", made.subject, "--json"]) == 0
    least = json.loads(capsys.readouterr().out)["least_bits"]
    message = refused("search", "--run", made.run, "--bits", "0.5")
    stated = [float(word.strip(";,.()")) for word in message.split() if word.strip(";,.()").replace(".", "").isdigit()]
    assert any(abs(value - least) < 0.01 for value in stated), (message, least)


def test_outputs_that_cannot_be_written(refused: Refused, made: Made, tmp_path: Path) -> None:
    file = given(tmp_path, "mine")
    for arguments in (
        ["apply", made.subject, made.plan, "--out", file],
        ["apply", made.subject, made.plan, "--out", file / "deeper"],
    ):
        message = refused(*arguments)
        assert "given.json" in message and "choose" in message
    assert file.read_text() == "mine"


def test_a_plan_that_cannot_be_written(refused: Refused, made: Made, tmp_path: Path) -> None:
    file = given(tmp_path, "mine")
    message = refused("search", "--run", made.run, "--bits", "3", "--out", file / "plan.json")
    assert "plan.json: cannot be written" in message and "choose a folder" in message


def test_an_unknown_effort(refused: Refused, made: Made) -> None:
    message = refused("apply", made.subject, made.plan, "--out", "o", "--effort", "heroic")
    assert "heroic" in message and "fast" in message


def test_tuning_and_rounding_that_contradict(refused: Refused, made: Made) -> None:
    target = ("apply", made.subject, made.plan, "--out", "o", "--run", made.run)
    assert "--tune-steps and --tune-minutes: give one" in refused(*target, "--tune-steps", "5", "--tune-minutes", "1")
    assert "--tune-minutes: got 0" in refused(*target, "--tune-minutes", "0")
    for option in ("--tune-trajectories", "--tune-buffer", "--tune-images"):
        assert f"{option}: for tuning alone; give --tune-steps" in refused(*target, option, "8")
    assert "--tune-trajectories: got 6" in refused(*target, "--tune-steps", "5", "--tune-trajectories", "6")
    assert "--tune-steps: got -1" in refused(*target, "--tune-steps", "-1")
    named = ("search", "--run", made.run, "--subject", made.subject, "--bits", "3")
    for verb in (target, named):
        assert "--activations 5: choose 8 or 6" in refused(*verb, "--activations", "5")
        assert "--activation-schemes: they are for --activations" in refused(*verb, "--activation-schemes", "token")
    search = (*named, "--activations", "8", "--activation-schemes")
    assert "scheme 'channel' is unknown; choose among token" in refused(*search, "channel")
    assert "no argument `timestep`" in refused(*search, "step")


def test_uniform_plans(refused: Refused, made: Made) -> None:
    assert "--uniform is for a SUBJECT alone" in refused("search", "--uniform", "--bits", "3", "--run", made.run)
    assert "give the --run that was probed" in refused("search", made.subject, "--bits", "3")
    assert "no budget is given" in refused("search", made.subject, "--uniform")
    assert "budgets of --bits and --size" in refused("search", made.subject, "--uniform", "--ms-per-step", "3")
    assert "cannot be met; the least reachable" in refused("search", made.subject, "--uniform", "--bits", "0.1")


def test_evaluations(refused: Refused, made: Made) -> None:
    assert "'--images'" in refused("evaluate", made.subject, "--images", "3")
    assert "no extractor of its own; choose one with --extractor" in refused("evaluate", f"{made.file}:without_extractor", "--images", "8")
    assert "absent.npz" in refused("evaluate", made.subject, "--images", "8", "--reference", "absent.npz")


def test_a_demo_over_somebody_elses_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    given(tmp_path, "mine", "given/notes.txt")
    message = refused("demo", "--fresh", "--out", "given")
    assert "--out given: is not a demo's folder" in message
    assert (tmp_path / "given" / "notes.txt").read_text() == "mine"
