"""What fuzz.py fuzzes: every reader, with valid inputs for it and how they are changed."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from fuzz_changes import changed_bytes, changed_text, changed_value
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from sedaq.aq.encoder.encoder import parse_effort
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.aq.modules.integration import stored_config
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning.artifact import load_tuned
from sedaq.cli.config import _values
from sedaq.errors import InputError
from sedaq.models.calls import Template
from sedaq.models.folders import components_in, hub_files, tensor_headers
from sedaq.models.images import all_images
from sedaq.models.manifest import foreign_to, verify
from sedaq.models.outline import OutlinedSubject
from sedaq.models.sampling import SamplingConfig
from sedaq.models.unloaded import _meta_model
from sedaq.runtime.executors import parse_executor
from sedaq.runtime.tasks import as_damage
from sedaq.search.budgets import parse_size
from sedaq.search.engine import SearchResult
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.predictor.tree_files import trees_from_json
from sedaq.sensitivity.settings import Settings
from sedaq.storage import json_bytes, load_tensors, read_json, read_records, read_sealed, tensor_fingerprint

OWN = ("kind", "schema", "sha256")


@dataclass(frozen=True)
class Reader:
    """What is read, valid inputs, how they are changed, and how many of a thousand inputs it gets."""

    name: str
    seeds: list[Any]
    change: Callable[[Any, random.Random], Any]
    read: Callable[[Any], object]
    share: int = 20
    drawn: st.SearchStrategy[Any] | None = None


def sealed(kind: str, content: Any) -> bytes:
    """A file of this content with a right seal; without one where it cannot have one."""
    try:
        return json_bytes(kind, content)
    except (ValueError, TypeError, RecursionError, AttributeError):
        return json.dumps(content).encode()


class Corpus:
    """Valid inputs from a run's folder, a model's and what was written of it; `at` is where changed files are put."""

    def __init__(self, run: Path, model: Path, written: Path, at: Path) -> None:
        self.run, self.model, self.written, self.at = run, model, written, at

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The contents of all records of a kind."""
        found = []
        for path in sorted(self.run.rglob("*.json*")):
            lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
            found += [body for line in lines if (body := json.loads(line)).get("kind") == kind]
        return [{key: value for key, value in body.items() if key not in OWN} for body in found]

    def files(self, pattern: str) -> list[bytes]:
        """The bytes of files of the run."""
        return [path.read_bytes() for path in sorted(self.run.glob(pattern))]

    def put(self, name: str, data: bytes) -> Path:
        """Write a changed file."""
        path = self.at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def put_tensors(self, kind: str, tensors: dict[str, torch.Tensor], content: Any) -> Path:
        """Write tensors with changed metadata."""
        hashed = content | {"tensors": tensor_fingerprint(sorted(tensors.items()))} if isinstance(content, dict) else content
        header = sealed(kind, hashed).decode("utf-8", "replace")
        return self.put(f"{kind}.safetensors", safetensors.torch.save(tensors, {"sedaq": header}))

    def of_record(self, kind: str, use: Callable[[dict[str, Any]], object], share: int = 20) -> Reader:
        """A reader of sealed JSON, whose content is then used."""

        def read(content: Any) -> object:
            return use(read_json(self.put(f"{kind}.json", sealed(kind, content)), kind))

        return Reader(f"record {kind}", self.records(kind), changed_value, read, share, drawn=JSON)

    def of_file(self, name: str, seeds: list[bytes], use: Callable[[Path], object], share: int = 20) -> Reader:
        """A reader of a file."""
        return Reader(name, seeds, changed_bytes, lambda data: use(self.put(name, data)), share, drawn=st.binary(max_size=200))

    def of_metadata(self, kind: str, pattern: str, use: Callable[[Path], object], share: int = 20) -> Reader:
        """A reader of tensors, whose metadata is changed under right seals."""

        def read(case: tuple[dict[str, torch.Tensor], Any]) -> object:
            return use(self.put_tensors(kind, *case))

        def change(case: Any, rng: random.Random) -> Any:
            return case[0], changed_value(case[1], rng)

        seeds = []
        for path in sorted(self.run.glob(pattern)):
            with safe_open(path, framework="pt") as file:
                body = json.loads((file.metadata() or {})["sedaq"])
                content = {key: value for key, value in body.items() if key not in (*OWN, "tensors")}
                seeds.append(({name: file.get_tensor(name) for name in file.keys()}, content))
        return Reader(f"metadata {kind}", seeds, change, read, share)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def readers(corpus: Corpus) -> list[Reader]:
    """All of them."""
    return [*of_records(corpus), *of_tensors(corpus), *of_models(corpus), *of_given(corpus)]


def not_loaded() -> Any:
    """Nothing here needs a model."""
    raise InputError("the model is not at hand")


def of_records(corpus: Corpus) -> Iterator[Reader]:
    """Sealed JSON and journals."""
    subject = OutlinedSubject(corpus.records("outline")[0], not_loaded)
    uses: dict[str, Callable[[dict[str, Any]], object]] = {
        "run": lambda content: Settings.from_dict(content["settings"]),
        "outline": lambda content: OutlinedSubject(content, not_loaded).layers,
        "plan": lambda content: Plan.from_json(content).validate(subject),
        "search": lambda content: [SearchResult.from_dict(result) for result in content["found"]],
        "front": lambda content: [Plan.from_json(plan["plan"]) for plan in content["plans"]],
    }
    for kind in ("run", "outline", "plan", "search", "front", "fit", "traits", "menu", "activations", "step times", "probing"):
        yield corpus.of_record(kind, uses.get(kind, dict), share=40 if kind in uses else 25)
    for kind in ("probe", "evaluation", "tuning", "contest"):
        yield corpus.of_record(kind, dict)
    predictors = corpus.records("predictor")

    def predictor(content: Any) -> object:
        corpus.put("additive.json", sealed("predictor", content))
        return Predictor.load(corpus.at, lambda *_: 0.1)

    yield Reader("predictor", predictors, changed_value, predictor, 5)
    for name in ("run.json", "layers.json", "plans/plan.json", "predictor/fit.json"):
        yield corpus.of_file(name, corpus.files(name), read_sealed)
    for name in ("probes.jsonl", "evaluations.jsonl", "tunings.jsonl"):
        kind = {"probes.jsonl": "probe", "evaluations.jsonl": "evaluation", "tunings.jsonl": "tuning"}[name]
        yield corpus.of_file(name, corpus.files(name), lambda path, kind=kind: read_records(path, kind), 30)  # type: ignore[misc]


def of_tensors(corpus: Corpus) -> Iterator[Reader]:
    """safetensors files."""
    for kind, pattern in (
        ("encoding", "encodings/*"),
        ("hessian", "calibration/*.0.*.safetensors"),
        ("features", "features/*"),
        ("tuned", "tuned/*"),
    ):
        yield corpus.of_file(
            f"{kind}.safetensors",
            corpus.files(f"{pattern}.safetensors".replace(".safetensors.safetensors", ".safetensors")),
            read_sealed,
            30,
        )
    yield corpus.of_metadata("encoding", "encodings/*.safetensors", Encoding.load)
    yield corpus.of_metadata("tuned", "tuned/*.safetensors", load_tuned)
    yield corpus.of_metadata("grids", "figures/*.safetensors", lambda path: load_tensors(path, "grids"))
    calls = {
        "fixed": {},
        "structure": {"dict": [["x", 0], ["t", {"tuple": [1]}]]},
        "paths": ["x", "t/0"],
        "dtypes": {"x": "float32", "t/0": "int64"},
    }
    recording = {"purpose": "tune", "n_images": 8, "start": 0, "seed": 0, "steps": None, "settings": {}}
    replay = {"subject": {"name": "a", "fingerprint": "0"}, "recording": recording, "call_lengths": [2], **calls}
    rows = {"x": torch.zeros(2, 3), "t/0": torch.zeros(2)}

    def read_calls(content: Any) -> object:
        path = corpus.put_tensors("replay", rows, content)
        with as_damage(path):
            return Template.from_file(*load_tensors(path, "replay"))

    yield Reader("calls", [replay], changed_value, read_calls, 20)


def of_models(corpus: Corpus) -> Iterator[Reader]:
    """Folders of models."""
    config = json.loads((corpus.model / "config.json").read_text())
    quantized = json.loads((corpus.written / "config.json").read_text())
    index = {
        "_class_name": "DiTPipeline", "_diffusers_version": "0.42.1", "id2label": {"0": "a"}, "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None],
    }  # fmt: skip

    def as_file(name: str, use: Callable[[Path], object]) -> Callable[[Any], object]:
        return lambda value: use(corpus.put(name, json.dumps(value).encode()))

    yield Reader("config.json", [config], changed_value, as_file("config.json", lambda path: _meta_model(path)), 1)
    yield Reader(
        "quantization_config", [quantized], changed_value, lambda value: stored_config(value, "config.json").to_dict(), 40, drawn=JSON
    )
    yield Reader(
        "model_index.json",
        [index],
        changed_value,
        as_file("index/model_index.json", lambda path: components_in(path.parent)),
        40,
        drawn=JSON,
    )
    weights = [(corpus.written / "diffusion_pytorch_model.safetensors").read_bytes()]
    names = ["model_index.json", "README.md", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "transformer/../x"]
    yield Reader(
        "files of the hub",
        [names],
        changed_value,
        lambda value: hub_files([str(name) for name in value] if isinstance(value, list) else [str(value)], None, "hub"),
        20,
    )
    yield corpus.of_file("weights/diffusion_pytorch_model.safetensors", weights, lambda path: tensor_headers(path.parent), 20)
    manifest = json.loads((corpus.written / "sedaq_manifest.json").read_text())

    def check_manifest(content: Any) -> object:
        folder = corpus.put("manifest/sedaq_manifest.json", sealed("manifest", content)).parent
        return foreign_to(folder), verify(folder)

    yield Reader("manifest", [{"files": manifest["files"]}], changed_value, check_manifest, 40, drawn=JSON)
    yield corpus.of_record("subject", dict) if corpus.records("subject") else Reader(
        "record subject", [{"conditions": [0, 1], "null_condition": None, "extractor": None, "steps": 2}], changed_value,
        lambda content: read_json(corpus.put("subject.json", sealed("subject", content)), "subject"), drawn=JSON,
    )  # fmt: skip
    node = {"left_children": [1, -1, -1], "right_children": [2, -1, -1], "split_indices": [0, 0, 0], "default_left": [0, 0, 0]}
    tree = node | {name: [0.5, 1.0, 2.0] for name in ("split_conditions", "base_weights", "sum_hessian", "loss_changes")}
    yield Reader(
        "trees",
        [[tree]],
        changed_value,
        lambda trees: trees_from_json([tree for tree in trees if isinstance(tree, dict)] if isinstance(trees, list) else [], 3),
        3,
    )


def of_given(corpus: Corpus) -> Iterator[Reader]:
    """What users give."""
    text = st.text(max_size=12)
    formats = ["2x8g8", "1x6g4hq", "3x4g4mq@blocks", "2x4g9tc", "int8", "asis"]

    def use_format(text: str) -> object:
        format = Format.parse(text)
        return [format.tensor_specs(shape) for shape in ((8, 16), (8, 4, 3, 3)) if format.fits(shape)], str(format)

    yield Reader("formats", formats, changed_text, use_format, 60, drawn=text)
    yield Reader("sizes", ["700kB", "1.5 MiB", "1500000", ".5GB"], changed_text, parse_size, 40, drawn=text)
    yield Reader("efforts", ["fast", "draft", "2.5"], changed_text, parse_effort, 10, drawn=text)
    yield Reader("executors", ["serial", "processes:2"], changed_text, parse_executor, 10, drawn=text)
    prompts = [b"a cat\na dog\n", "\ufeffein Hund\r\n".encode(), "a\x85b\n".encode("utf-16")]
    yield corpus.of_file("prompts.txt", prompts, lambda path: SamplingConfig(prompts=str(path)).prompt_lines, 30)
    toml = [b'images = 16\nsteps = 2\n[search]\nbits = 2.0\npin = {"a*" = "int8"}\n', b"[probe]\nrates = [2, 4]\nseed = 1979-05-27\n"]
    known = {
        verb: {"images": "images", "steps": "steps", "bits": "bits", "pin": "pin", "rates": "rates", "seed": "seed"}
        for verb in ("search", "probe")
    }
    yield corpus.of_file("config.toml", toml, lambda path: _values(path, "search", known), 60)
    yield corpus.of_file("images.npz", [_npz(), _npz(compressed=True)], lambda path: all_images(path, (1, 8, 8)), 30)
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image, "PNG")
    yield corpus.of_file("images/a.png", [image.getvalue()], lambda path: all_images(path.parent, (1, 8, 8)), 30)


def _npz(compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, images=np.zeros((3, 8, 8), np.uint8), mu=np.zeros(4))
    return file.getvalue()
