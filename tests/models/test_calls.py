"""Structures of calls in files: the very trees come back, and a file can make nothing but dicts, lists and tuples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from sedaq.errors import DamagedError, InputError
from sedaq.models.calls import Template, named_leaves

LEAF = st.none() | st.just(1.5)
TREES = st.recursive(
    LEAF, lambda t: st.lists(t, max_size=3) | st.tuples(t, t) | st.dictionaries(st.text("abc", min_size=1, max_size=2), t, max_size=3)
)


def template(call: dict[str, Any]) -> Template:
    named, spec = named_leaves(call)
    return Template(spec, list(named), named, {})


def through_a_file(found: Template) -> Template:
    tensors, metadata = found.to_file()
    return Template.from_file(tensors, json.loads(json.dumps(metadata)))


@given(TREES)
def test_structures_come_back(tree: Any) -> None:
    call = {"x": tree}
    again = through_a_file(template(call)).fill({}, torch.device("cpu"))
    assert again == call
    assert pytree.tree_structure(again) == pytree.tree_structure(call)


@pytest.mark.parametrize(
    "structure",
    [
        {"os.system": []},
        {"list": 3},
        {"list": [], "tuple": []},
        {"dict": [["a"]]},
        "text",
        None,
        {"tuple": [0, 1]},
    ],
)
def test_files_with_other_structures_are_damaged(structure: Any) -> None:
    tensors, metadata = template({"x": 1.5}).to_file()
    with pytest.raises(DamagedError, match="record it again"):
        Template.from_file(tensors, {**metadata, "structure": structure})


def test_no_file_imports_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own text of a structure names modules, which it imports."""
    (tmp_path / "hostile.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": "hostile", "default_factory_name": "f", "dict_context": []}, "children_spec": []}]'
    with pytest.raises(DamagedError, match="earlier version"):
        Template.from_file({}, {"fixed": {}, "spec": spec, "paths": [], "dtypes": {}})
    assert "hostile" not in sys.modules


def test_dtypes_are_torchs() -> None:
    with pytest.raises(DamagedError, match="'nn', which torch has not"):
        Template.from_file({}, {"fixed": {}, "structure": {"dict": [["x", 0]]}, "paths": ["x"], "dtypes": {"x": "nn"}})


def test_other_containers_cannot_be_kept() -> None:
    class Own(tuple):
        pass

    from collections import OrderedDict

    with pytest.raises(InputError, match="OrderedDict, which no file can hold"):
        template({"x": OrderedDict(a=1)}).to_file()
