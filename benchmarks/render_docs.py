"""Write measured numbers into the documentation:  python benchmarks/render_docs.py [--check]

README.md and the pages of docs/ hold markers, a number or a table between two comments that GitHub does not show:

    <!-- = fixed(row("demo.evaluations", name="uniform").metrics.fid.value, 1) -->123.9<!-- end -->

The first comment is a Jinja expression over benchmarks/results/*.json. The text up to the second one is replaced by its value. With --check nothing
is written, and a marker whose text is not up to date is an error. What expressions may call: doc_tables/.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from doc_tables import NUMBERS, TABLES
from doc_tables.layout import DocsError, Results
from jinja2 import Environment, StrictUndefined
from jinja2.exceptions import TemplateError

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"<!-- = (?P<expression>.+?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def make_environment(results: Results) -> Environment:
    """What expressions may call: `row` and `result` of a result file, NUMBERS and TABLES."""
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    environment.globals.update({"result": results.result, "row": results.row, "rows": results.rows, **NUMBERS})
    environment.globals.update({name: partial(function, results) for name, function in TABLES.items()})
    return environment


def evaluate(environment: Environment, expression: str) -> str:
    """The expression's value as text. A block, which has several lines, gets lines of its own. Raises DocsError."""
    try:
        # A key that is missing is StrictUndefined, which str() refuses.
        text = str(environment.compile_expression(expression, undefined_to_none=False)())
    except (TemplateError, LookupError, TypeError, ValueError) as error:
        raise DocsError(f"{expression}: {error}") from error
    return f"\n{text}\n" if "\n" in text else text


def render(text: str, environment: Environment) -> str:
    """The page with every marker's text replaced. Raises DocsError, which names the line."""

    def replace(match: re.Match[str]) -> str:
        where = f"line {text.count(chr(10), 0, match.start()) + 1}"
        try:
            value = evaluate(environment, match["expression"])
        except DocsError as error:
            raise DocsError(f"{where}: {error}") from error
        starts_line = text[: match.start()].rpartition("\n")[2].strip() == ""
        if starts_line and "\n" not in value:
            raise DocsError(f"{where}: a line may not start with a number's marker, Markdown would take it for HTML; put a word before it")
        return f"<!-- = {match['expression']} -->{value}<!-- end -->"

    if len(MARKER.findall(text)) != text.count("<!-- = ") or text.count("<!-- = ") != text.count("<!-- end -->"):
        raise DocsError("a marker is not closed; write <!-- = EXPRESSION -->…<!-- end -->")
    return MARKER.sub(replace, text)


def find_differences(old: str, new: str) -> Iterator[str]:
    """Markers whose text changes: line, expression, and for single numbers the old and the new text."""
    for before, after in zip(MARKER.finditer(old), MARKER.finditer(new), strict=True):
        if before["text"] != after["text"]:
            line = old.count("\n", 0, before.start()) + 1
            change = "" if "\n" in after["text"] else f": {before['text']} is now {after['text']}"
            yield f"line {line}: {before['expression']}{change}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is not up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help="of a repository: README.md, docs/, benchmarks/results/")
    arguments = parser.parse_args()
    environment = make_environment(Results(arguments.root / "benchmarks" / "results"))
    stale, n_markers = [], 0
    for path in pages(arguments.root):
        name, old = path.relative_to(arguments.root), path.read_text(encoding="utf-8")
        try:
            new = render(old, environment)
        except DocsError as error:
            sys.exit(f"{name}: {error}")
        n_markers += len(MARKER.findall(new))
        stale += [f"{name}: {difference}" for difference in find_differences(old, new)]
        if new != old and not arguments.check:
            path.write_text(new, encoding="utf-8")
    print("\n".join([*stale, f"{n_markers} numbers and tables, {len(stale)} {'out of date' if arguments.check else 'written anew'}"]))
    if stale and arguments.check:
        sys.exit("the documentation is not up to date; run `make docs`")


if __name__ == "__main__":
    main()
