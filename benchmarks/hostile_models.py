"""Strangers' models and files, for hostile.py."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_runs import DOCTOR, FIT, SEARCH, Case, edited, replaced, resealed
from tiny_run import Scene

from sedaq.models.folders import SUBJECT_FILE
from sedaq.storage import json_bytes, read_json

DEEP = 100_000


class Bomb:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> Any:
        return os.system, ("touch $SEDAQ_MARK",)


# -- models ------------------------------------------------------------------------------------------------------------------------------

INSPECT = ("inspect", "{model}")
CONFIGS: dict[str, Any] = {
    "num_layers": 10**6, "in_channels": 10**12, "out_channels": 10**12, "sample_size": 10**12, "patch_size": 10**12, "num_attention_heads": 10**12,
    "attention_head_dim": 10**12, "num_embeds_ada_norm": 10**12, "norm_num_groups": 10**12, "activation_fn": "__import__('os').system('touch $SEDAQ_MARK')",
    "_class_name": "os.system", "auto_map": {"AutoModel": "evil.Evil"}, "_name_or_path": "somebody/else", "upcast_attention": [[]], "dropout": "x",
}  # fmt: skip
INDEX: dict[str, Any] = {
    "os": ["os", "system"], "builtins": ["builtins", "eval"], "out": ["../evil", "Evil"], "module": ["evil", "Evil"], "subprocess": ["subprocess", "Popen"],
    "deep": ["diffusers.utils.os", "system"], "pipeline": ["diffusers", "DiffusionPipeline"], "attribute": ["diffusers", "os"], "transformers": ["transformers", "pipeline"],
}  # fmt: skip


def of_models() -> Iterator[Case]:
    """Folders of models."""
    for field, value in CONFIGS.items():

        def configure(scene: Scene, given: Path, field: str = field, value: Any = value) -> None:
            edited(scene.model / "config.json", **{field: value})

        yield Case("configs", f"{field} inspect", configure, INSPECT)
        yield Case("configs", f"{field} probe", configure, ("probe", "{model}", "--run", "{given}/new", "--configs", "2", "{settings}"))
    for field, value in {
        "num_train_timesteps": 10**12,
        "_class_name": "DDIMScheduler; import os",
        "trained_betas": [0.1] * 10,
        "beta_schedule": "x",
    }.items():

        def schedule(scene: Scene, given: Path, field: str = field, value: Any = value) -> None:
            edited(scene.model / "scheduler_config.json", **{field: value})

        yield Case("configs", f"scheduler {field}", schedule, ("probe", "{model}", "--run", "{given}/new", "--configs", "2", "{settings}"))
    for what, entry in INDEX.items():
        for component in ("transformer", "../../transformer", "vae"):

            def index(scene: Scene, given: Path, entry: Any = entry, component: str = component) -> None:
                shutil.copytree(scene.model, given / "pipeline" / "transformer")
                shutil.copytree(scene.model, given / "pipeline" / "vae")
                parts = {
                    "_class_name": "DiTPipeline",
                    "transformer": ["diffusers", "DiTTransformer2DModel"],
                    "scheduler": ["diffusers", "DDIMScheduler"],
                    component: entry,
                }
                (given / "pipeline" / "model_index.json").write_text(json.dumps(parts))
                (given / "pipeline" / "evil.py").write_text("import os\nos.system('touch $SEDAQ_MARK')\n")

            yield Case("parts of a pipeline", f"{what} as {component}", index, ("inspect", "{given}/pipeline"))
    for name in (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.bin.index.json",
        "pytorch_model.bin",
    ):

        def pickled(scene: Scene, given: Path, name: str = name) -> None:
            for path in scene.model.glob("*.safetensors"):
                path.unlink()
            replaced(scene.model / name, pickle.dumps({"weight": Bomb()}))

        def saved(scene: Scene, given: Path, name: str = name) -> None:
            for path in scene.model.glob("*.safetensors"):
                path.unlink()
            torch.save({"weight": Bomb()}, scene.model / name)

        yield Case("pickles", f"{name} pickled", pickled, INSPECT)
        yield Case("pickles", f"{name} saved by torch", saved, ("probe", "{model}", "--run", "{given}/new", "--configs", "2", "{settings}"))
    for source in ("evil.py:make", "../given/evil.py:make", "{given}/evil.py:make", "somebody/model"):

        def sourced(scene: Scene, given: Path, source: str = source) -> None:
            (given / "evil.py").write_text("import os\nos.system('touch $SEDAQ_MARK')\n")
            replaced(scene.model / SUBJECT_FILE, json_bytes("subject", {"source": source.replace("{given}", str(given))}))

        yield Case("a folder names code", source, sourced, INSPECT)
    for name in ("../victim.txt", "/etc/passwd", "a/../../victim.txt", "x" * 300, "", "\x00"):

        def listed(scene: Scene, given: Path, name: str = name) -> None:
            resealed(scene.written / "sedaq_manifest.json", files={name: "0" * 64})

        yield Case("manifests", repr(name[:20]), listed, ("apply", "{model}", "{plan}", "--run", "{run}", "--out", "{small}"))
    for what, fields in {
        "layer outside": {"layers": {"../x": "int8"}}, "huge format": {"layers": {"proj_out_1": "8x12g64"}}, "no format": {"layers": {"proj_out_1": "os.system"}}, "numbers": {"layers": 3},
        "tied to itself": {"tied": {"proj_out_1": "proj_out_1"}}, "edges": {"timestep_edges": ["x"]}, "costs": {"kernel_costs": {"law": {"a": 1}}}, "another field": {"evil": 1},
    }.items():  # fmt: skip

        def quantized(scene: Scene, given: Path, fields: dict[str, Any] = fields) -> None:
            (scene.written / "sedaq_manifest.json").unlink()
            config = json.loads((scene.written / "config.json").read_text())
            edited(scene.written / "config.json", quantization_config={**config["quantization_config"], **fields})

        yield Case(
            "quantization_config",
            what,
            quantized,
            (
                "evaluate",
                "{small}",
                "--images",
                "8",
                "--steps",
                "1",
                "--extractor",
                "embedded",
                "--reference",
                "{run}/reference.safetensors",
            ),
        )


# -- files -------------------------------------------------------------------------------------------------------------------------------


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")


def _npz(path: Path, shape: tuple[int, ...], n_bytes: int, descr: str = "|u1") -> None:
    """An archive that claims an array of this shape, and holds so many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w", force_zip64=True) as file:
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
        file.write(b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n")
        for _ in range(n_bytes >> 20):
            file.write(bytes(1 << 20))


def of_files() -> Iterator[Case]:
    """Files of every kind."""
    deep = b"[" * DEEP + b"]" * DEEP
    objects = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    for data in (deep, objects):
        for name in (
            "run/run.json",
            "run/layers.json",
            "run/probes.jsonl",
            "run/plans/plan.json",
            "run/predictor/additive.json",
            "small/config.json",
            "small/sedaq_manifest.json",
        ):

            def nest(scene: Scene, given: Path, name: str = name, data: bytes = data) -> None:
                replaced(scene.folder / name, data + b"\n")

            words = DOCTOR if name.startswith("run") else ("doctor", "{small}")
            yield Case("nested deep", f"{name} {data[:2]!r}", nest, words)
        yield Case(
            "nested deep", f"config {data[:2]!r}", lambda scene, given, data=data: replaced(scene.model / "config.json", data), INSPECT
        )
        toml = b"a = " + deep
        yield Case(
            "nested deep", "toml", lambda scene, given, toml=toml: replaced(given / "c.toml", toml), (*FIT, "--config", "{given}/c.toml")
        )
    evaluate = ("evaluate", "{model}", "--images", "8", "--steps", "1", "--extractor", "embedded", "--reference", "{given}/r.npz")
    shapes: dict[str, tuple[tuple[int, ...], int, str]] = {
        "a bomb": ((3_000_000, 28, 28), 2_300 << 20, "|u1"), "10^12 images": ((10**12, 28, 28), 1 << 20, "|u1"), "of objects": ((3,), 0, "|O"), "negative": ((-1, 28, 28), 0, "|u1"),
        "of another shape": ((10, 5000, 5000), 1 << 20, "|u1"), "code for a header": ((1, 28, 28), 0, "__import__('os').system('touch $SEDAQ_MARK')"),
    }  # fmt: skip
    for what, (shape, n_bytes, descr) in shapes.items():
        yield Case("archives", what, lambda scene, given, a=(shape, n_bytes, descr): _npz(given / "r.npz", *a), evaluate)
    yield Case(
        "archives", "a pickle in it", lambda scene, given: np.savez(given / "r.npz", images=np.array([Bomb()], dtype=object)), evaluate
    )
    yield Case("archives", "an array named so", lambda scene, given: (np.save(given / "r.npy", np.zeros((4, 28, 28), np.uint8)), (given / "r.npy").rename(given / "r.npz")), evaluate)  # fmt: skip
    folder = (*evaluate[:-1], "{given}/images")
    for width, height in ((10**5, 10**5), (2**31 - 1, 2**31 - 1), (13000, 13000), (28, 10**6), (0, 0)):

        def draw(scene: Scene, given: Path, size: tuple[int, int] = (width, height)) -> None:
            (given / "images").mkdir()
            (given / "images" / "a.png").write_bytes(_png(*size))

        yield Case("images", f"{width}×{height}", draw, folder)
        yield Case(
            "images",
            f"{width}×{height} to start from",
            draw,
            ("evaluate", "{model}", "--images", "8", "--steps", "1", "--input-images", "{given}/images"),
        )
    for forged in (
        {"left_children": [0] * 3},
        {"split_indices": [10**6] * 3},
        {"sum_hessian": [0.0] * 3},
        {"left_children": [1] * 10**5},
        {"split_conditions": [1e308] * 3},
    ):

        def plant(scene: Scene, given: Path, forged: dict[str, Any] = forged) -> None:
            nodes = {"left_children": [1, -1, -1], "right_children": [2, -1, -1], "split_indices": [0] * 3, "default_left": [0] * 3}
            tree = nodes | {name: [0.5] * 3 for name in ("split_conditions", "base_weights", "sum_hessian", "loss_changes")} | forged
            members = read_json(scene.run / "predictor" / "additive.json", "predictor")["members"]
            resealed(scene.run / "predictor" / "additive.json", members=[{**member, "trees": [tree]} for member in members])

        yield Case("trees", str(forged)[:40], plant, SEARCH)
