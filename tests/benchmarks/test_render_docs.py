"""The documentation's numbers: rendered from results, found when they change, refused when they are missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import render_docs
from doc_tables import TABLES
from doc_tables.layout import DocsError, Results, count, fixed, interval, lay_out, percent

MACHINE = {"cpu": "A processor", "cores": 2, "threads": 1, "capability": "AVX2", "torch": "2.13.0"}
ROWS = [{"layer": "a", "seconds": 1.25}, {"layer": "b", "seconds": 2.0}, {"layer": "b", "seconds": 3.0}]


def write_results(folder: Path, name: str, rows: Any, **details: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"command": f"python benchmarks/{name}.py", "date": "2026-11-28", "machine": MACHINE, **details, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A README and one page with a number each, and one result file."""
    write_results(tmp_path / "benchmarks/results", "speed", ROWS)
    (tmp_path / "docs").mkdir()
    number = '<!-- = fixed(row("speed", layer="a").seconds, 1) -->?<!-- end -->'
    (tmp_path / "README.md").write_text(f"It takes {number} s.\n")
    (tmp_path / "docs/page.md").write_text('<!-- = measured("speed") -->\n<!-- end -->\n')
    return tmp_path


def render(text: str, repository: Path) -> str:
    return render_docs.render(text, render_docs.make_environment(Results(repository / "benchmarks/results")))


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, render_docs.__file__, "--root", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": ""})


def test_numbers_are_written_between_their_markers(repository: Path) -> None:
    assert run(repository).returncode == 0
    assert re.sub("<!--.*?-->", "", (repository / "README.md").read_text()) == "It takes 1.2 s.\n"
    assert (
        "*2026-11-28 · commit not recorded · A processor, 2 cores, 1 thread, AVX2, torch 2.13.0*"
        in (repository / "docs/page.md").read_text()
    )
    assert run(repository, "--check").returncode == 0


def test_threads_are_those_of_the_rows_where_these_say_so(repository: Path) -> None:
    write_results(repository / "benchmarks/results", "speed", [{**row, "threads": 1 + (row["seconds"] > 2)} for row in ROWS])
    assert render('<!-- = measured("speed") -->\n<!-- end -->', repository).count("2 cores, 1 or 2 threads, AVX2") == 1


def test_check_names_a_number_that_changed_and_writes_nothing(repository: Path) -> None:
    run(repository)
    before = (repository / "README.md").read_text()
    write_results(repository / "benchmarks/results", "speed", [{"layer": "a", "seconds": 1.5}])
    checked = run(repository, "--check")
    assert checked.returncode == 1
    assert "README.md: line 1:" in checked.stdout and "1.2 is now 1.5" in checked.stdout
    assert (repository / "README.md").read_text() == before


def test_check_finds_a_number_typed_by_hand(repository: Path) -> None:
    run(repository)
    readme = repository / "README.md"
    readme.write_text(readme.read_text().replace("1.2", "1.1"))
    assert run(repository, "--check").returncode == 1
    assert run(repository).returncode == run(repository, "--check").returncode == 0


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ('fixed(row("speed", layer="a").minutes, 1)', "minutes"),
        ('fixed(row("speed", layer="c").seconds, 1)', "0 rows of speed"),
        ('fixed(row("speed", layer="b").seconds, 1)', "2 rows of speed"),
        ('count(row("none", layer="a").seconds)', "no none.json"),
        ('row("speed", layer="a").minutes', "minutes"),
        ("no_such_table()", "no_such_table"),
        ("fixed(", "unexpected"),
    ],
)
def test_a_missing_value_is_an_error_that_names_the_line(repository: Path, expression: str, message: str) -> None:
    with pytest.raises(DocsError, match="line 2") as raised:
        render(f"First line.\nThen <!-- = {expression} -->1<!-- end -->.\n", repository)
    assert message in str(raised.value)


def test_a_part_of_a_file_that_is_missing_is_an_error(repository: Path) -> None:
    write_results(repository / "benchmarks/results", "parts", {"one": ROWS})
    with pytest.raises(DocsError, match="no part two, it has one"):
        render('x <!-- = row("parts.two", layer="a").seconds --><!-- end -->', repository)


@pytest.mark.parametrize("text", ["x <!-- = count(1) -->1", "x <!-- = count(1) -->1<!-- end --><!-- end -->"])
def test_a_marker_that_is_not_closed_is_an_error(repository: Path, text: str) -> None:
    with pytest.raises(DocsError, match="not closed"):
        render(text, repository)


def test_a_line_may_not_start_with_a_number(repository: Path) -> None:
    """Markdown would show the rest of that line as HTML."""
    with pytest.raises(DocsError, match="put a word before it"):
        render("First line\n<!-- = count(1) -->1<!-- end --> and more.\n", repository)


def test_numbers_read_as_text_does() -> None:
    assert [fixed(-1299.84, 1), fixed(-0.001, 2), fixed(0.851, 2)] == ["−1,299.8", "0.00", "0.85"]
    assert [count(2864752), percent(0.9612, 1), interval([-0.4, 0.1], 1)] == ["2,864,752", "96.1 %", "−0.4 to 0.1"]
    assert lay_out(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_every_table_is_in_the_documentation() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in render_docs.pages(render_docs.ROOT))
    used = {name for marker in render_docs.MARKER.finditer(text) for name in re.findall(r"\w+", marker["expression"])}
    assert set(TABLES) - used == set()


def find_anchors(path: Path) -> set[str]:
    """Headings as GitHub names them: in lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    n_links = 0
    for path in render_docs.pages(render_docs.ROOT):
        for target, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
            where = f"{path.relative_to(render_docs.ROOT)} links to {target}#{anchor}"
            assert (path.parent / target).exists(), where
            assert not anchor or anchor in find_anchors(path.parent / target), where
            n_links += 1
    assert n_links > 20
