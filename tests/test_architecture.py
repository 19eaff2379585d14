"""The house from outside: floors, relative imports, names, and that no installed module answers to `kernels`."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each folder, and what it may import besides itself; files at the root may be imported by all.
GROUND = {"errors", "storage", "records", "remote", "outputs", "progress"}
FLOORS = ["aq", "sensitivity", "search", "reports", "cli"]
LOWEST = {"runtime": set(), "models": {"runtime"}, "kernels": {"runtime"}}
ALLOWED = {"records": set()} | LOWEST | {floor: {*LOWEST, *FLOORS[:i]} for i, floor in enumerate(FLOORS)}
ALLOWED["cli"] |= {"api"}  # the floor below it is one file
# The root's own files: the package looks its public names up, and registers with diffusers on import.
ALLOWED_AT_ROOT = {
    "errors.py": set(),
    "storage.py": {"errors", "records", "records.check", "remote"},
    "remote.py": {"errors"},
    "outputs.py": {"errors", "storage"},
    "progress.py": {"errors"},
    "__init__.py": {"aq.modules.integration"},
    "__main__.py": {"cli.main"},
}
SOURCES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py")) + [
    ROOT / name for name in (*ALLOWED_AT_ROOT, "api.py")
]
MAX_LINES = 350


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[int, int, str]]:
    """(line, level, module) of every import, those inside functions too; level 0 is absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.lineno, node.level, node.module
            else:
                yield from ((node.lineno, node.level, alias.name) for alias in node.names)


def inside(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module from the package's root) of every relative import."""
    for line, level, module in imports(path):
        if level:
            folder = path.relative_to(ROOT).parts[:-1]
            assert level <= len(folder) + 1, f"{named(path)}:{line} leaves the package"
            yield line, ".".join([*folder[: len(folder) - level + 1], module])


def absolute(paths: Iterable[Path], names: Set[str]) -> list[str]:
    """Absolute imports of modules whose first name is one of `names`."""
    found = [(path, *item) for path in paths for item in imports(path)]
    return [f"{named(path)}:{line} imports {module}" for path, line, level, module in found if not level and module.split(".")[0] in names]


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 50 and sum(1 for path in SOURCES for _ in inside(path)) > 150


@pytest.mark.parametrize("folder", ALLOWED)
def test_each_floor_imports_only_from_floors_below(folder: str) -> None:
    allowed = ALLOWED[folder] | GROUND | {folder}
    found = [(path, line, module) for path in (ROOT / folder).rglob("*.py") for line, module in inside(path)]
    assert [f"{named(path)}:{line} imports {module}" for path, line, module in found if module.split(".")[0] not in allowed] == []


@pytest.mark.parametrize("file", ALLOWED_AT_ROOT)
def test_the_files_at_the_root_import_next_to_nothing(file: str) -> None:
    assert {module for _, module in inside(ROOT / file)} <= ALLOWED_AT_ROOT[file]


def test_the_interface_imports_from_the_floors_below_it() -> None:
    assert {module.split(".")[0] for _, module in inside(ROOT / "api.py")} <= {*LOWEST, *FLOORS[:-1], *GROUND}


def test_imports_inside_the_package_are_relative() -> None:
    ours = {"sedaq", *ALLOWED, *GROUND}
    assert absolute(SOURCES, ours) == []


def test_tests_and_benchmarks_import_the_package_by_name() -> None:
    paths = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 10
    assert absolute(paths, ALLOWED.keys() | GROUND) == []


def test_every_folder_of_code_is_installed() -> None:
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(["sedaq", *path.relative_to(ROOT).parts[:-1]]) for path in SOURCES}
    assert declared == found
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").exists() for name in declared)


# -- other interpreters ------------------------------------------------------------------------------------------------------------------


def run(code: str, *, path: Path | None = None, safe: bool = True) -> str:
    """What `code` prints in a new interpreter that is started in the repository's root."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment |= {"PYTHONSAFEPATH": "1"} if safe else {}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_no_module_of_ours_answers_to_kernels() -> None:
    """transformers and diffusers import Hugging Face's package of that name, if it is there."""
    code = f"""
from importlib.util import find_spec
specs = [find_spec(name) for name in {sorted(ALLOWED)!r}]
print([spec.name for spec in specs if spec and str(spec.origin).startswith({str(ROOT)!r})])
"""
    assert run(code) == "[]"


def test_an_installed_package_called_kernels_stays_itself(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("__version__ = '0.99'\nIS_FAKE = True\n")
    code = "import sedaq.kernels.dispatch, kernels; print(kernels.IS_FAKE, hasattr(sedaq.kernels, 'IS_FAKE'), sedaq.kernels is kernels)"
    assert run(code, path=tmp_path) == "True False False"


EVERY_SUBMODULE = """
import importlib, pkgutil, warnings
warnings.simplefilter("ignore")
import sedaq
names = [m.name for m in pkgutil.walk_packages(sedaq.__path__, "sedaq.") if m.name.split(".")[1] in {folders!r}]
for name in names:
    importlib.import_module(name)
for name in sedaq.__all__:
    value = getattr(sedaq, name)
    assert name == "__version__" or callable(value), (name, value)
    assert name == "__version__" or value.__module__.startswith("sedaq."), name
assert set(sedaq.__all__) <= set(dir(sedaq))
try:
    sedaq.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError("an unknown name was found")
print(len(names))
"""


def test_public_names_are_callable_after_every_submodule_was_imported() -> None:
    assert int(run(EVERY_SUBMODULE.format(folders=sorted({*ALLOWED, *GROUND})))) > 50


def test_no_public_name_is_a_folders() -> None:
    import sedaq

    assert not set(sedaq.__all__) & {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not set(sedaq.__all__) & GROUND
    promised = "Run Budget SamplingConfig TuneConfig evaluate inspect quantize_ load Subject Format encode Encoding AQLinear AQConv2d Plan InputError"
    assert set(promised.split()) <= set(sedaq.__all__)


def test_importing_the_package_a_second_time_is_harmless() -> None:
    code = (
        "import sys, sedaq; from diffusers.quantizers import auto; first = dict(auto.AUTO_QUANTIZER_MAPPING);"
        "[sys.modules.pop(n) for n in list(sys.modules) if n.split('.')[0] == 'sedaq']; import sedaq as again;"
        "print(again is sedaq, list(auto.AUTO_QUANTIZER_MAPPING) == list(first), again.Format.parse('2x8g8'))"
    )
    assert run(code) == "False True 2x8g8"


def test_importing_the_package_leaves_slow_libraries_alone() -> None:
    slow = ["xgboost", "optuna", "matplotlib", "pandas", "sklearn", "jinja2"]
    theirs = "import sys; from diffusers.quantizers import auto; before = set(sys.modules)"  # it imports transformers where that is there
    assert run(f"{theirs}; import sedaq; print([n for n in {slow!r} if n in set(sys.modules) - before])") == "[]"


# -- files -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [*ALLOWED, "benchmarks", "."])
def test_no_file_is_too_long(folder: str) -> None:
    paths = (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py")
    long = {named(path): n for path in paths if (n := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES}
    assert long == {}


def test_nothing_is_pickled() -> None:
    for path in SOURCES:
        for line, _, module in imports(path):
            assert module.split(".")[0] not in {"dill", "cloudpickle", "joblib", "shelve", "marshal"}, f"{named(path)}:{line}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, arguments = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            where = f"{named(path)}:{node.lineno}"
            assert called != "torch.load" or arguments.get("weights_only") == "True", where
            assert called not in {"eval", "exec"} and not re.match(r"pickle\.(load|dump|Unpickler|Pickler)", called), where
            # a training script's own checkpoint is read with weights_only, and never shipped
            assert called != "torch.save" or path.name.startswith("train_"), where
            assert called not in {"np.load", "numpy.load"} or arguments.get("allow_pickle", "False") == "False", where


def test_the_library_neither_prints_nor_exits() -> None:
    """Only the command line does."""
    for path in SOURCES:
        if path.parent.name == "cli" or path.name == "__main__.py" or "shipped" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"print", "exit", "quit", "sys.exit", "os._exit"}, f"{named(path)}:{node.lineno}"


def test_no_source_holds_the_path_of_a_machine() -> None:
    pattern = re.compile(r"[\"'(\s](/home/|/root/|/tmp/|/work/|/Users/|C:\\)")
    for path in SOURCES:
        assert not pattern.search(path.read_text(encoding="utf-8")), named(path)


# Functions that take any keyword, and who refuses those that are unknown.
TAKE_KEYWORDS = {
    "search_run": "find_plan",
    "search_front": "find_front",
    "find_plan": "Search",
    "find_front": "Search",
    "of": "the dataclass",
    "check_if_quantized_param": "diffusers calls it",
    "create_quantized_param": "diffusers calls it",
}


def test_no_public_function_swallows_unknown_keywords() -> None:
    found = {
        f"{named(path)}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.args.kwarg and not node.name.startswith("_") and node.name not in TAKE_KEYWORDS
    }
    # These hand them to a config or a signature that refuses unknown ones (tests/test_api.py).
    handed_on = {
        "api.py: search",
        "api.py: front",
        "api.py: bench",
        "cli/config.py: command",
        "cli/config.py: config_options",
        "cli/options.py: command",
    }
    assert found - {"reports/style.py: drawn", *handed_on} == set()


def test_the_library_names_no_flag() -> None:
    """Messages name arguments in backticks; the command line turns those into its flags."""
    flag = re.compile(r"(?<![\w-])--[a-z]")
    lines = [
        f"{named(path)}:{number}"
        for path in SOURCES
        if path.parent.name != "cli" and not path.name.startswith("train_")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if flag.search(line) and "hf download" not in line
    ]
    assert lines == []


def test_the_diagram_shows_every_folder() -> None:
    drawn = set(re.findall(r">([\w ]+)</text>", (ROOT / "docs/floors.svg").read_text(encoding="utf-8")))
    folders = {path.name for floor in ALLOWED for path in [ROOT / floor, *(ROOT / floor).iterdir()] if (path / "__init__.py").exists()}
    assert folders - drawn == set(), "draw these folders in docs/floors.svg"


def test_times_are_read_from_one_clock() -> None:
    """It waits for the device; tests may use another, and so may what runs where sedaq is not."""
    paths = [*SOURCES, *(ROOT / "benchmarks").glob("*.py")]
    found = {named(path) for path in paths if "perf_counter" in path.read_text(encoding="utf-8")}
    assert found == {"kernels/timing.py", "benchmarks/peers_child.py"}
