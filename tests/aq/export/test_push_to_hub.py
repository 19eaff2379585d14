"""push_to_hub of a quantized model, against a local server of the hub's HTTP calls."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import sedaq
from sedaq.aq.export.apply import apply
from sedaq.models.loading import load
from sedaq.sensitivity.plan_encodings import store_for_plan

PUSH_AND_PULL = """
import sys, torch, sedaq
from diffusers import UNet2DModel
UNet2DModel.from_pretrained(sys.argv[1]).push_to_hub("someone/small", token="hf_abc", private=True)
torch.save(UNet2DModel.from_pretrained("someone/small", token="hf_abc").state_dict(), sys.argv[2])
"""


class Hub(ThreadingHTTPServer):
    """Keeps the files of one repository in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, content: object, code: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": "0" * 40, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/someone/small", "id": "someone/small", "name": "someone/small"})
        elif self.path == "/api/validate-yaml":
            self._answer({"warnings": [], "errors": []})
        elif self.path.endswith("/preupload/main"):
            wanted = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]})
        elif self.path.split("?")[0].endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = {"commitUrl": f"{self.server.url}/someone/small/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""}
            self._answer({"success": True, **commit})
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        found = re.search(r"/resolve/[^/]+/([^?]+)", self.path)
        name = found[1] if found else ""
        if name in self.server.files:
            data = self.server.files[name]
            etag = f'"{hash(data):x}"'.replace("-", "")
            self._answer(data, ETag=etag, X_Linked_Size=str(len(data)))
        else:
            self._answer({"error": self.path}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_pulled_bit_for_bit(hub: Hub, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    plan = sedaq.uniform_plan(pipeline_folder, sedaq.Budget(bits=3.0))
    chosen, store = store_for_plan(plan, str(pipeline_folder), None, tmp_path / "store", hessian="none")
    apply(store.subject, chosen, store, tmp_path / "out")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1", "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", PUSH_AND_PULL, str(tmp_path / "out" / "unet"), str(tmp_path / "pulled")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.created[0]["name"] == "small" and hub.created[0]["visibility"] == "private"
    assert {"config.json", "diffusion_pytorch_model.safetensors", "README.md"} <= hub.files.keys()
    assert json.loads(hub.files["config.json"])["quantization_config"]["quant_method"] == "sedaq"
    pulled = torch.load(tmp_path / "pulled", weights_only=True)
    here = load(tmp_path / "out", quantized=True).denoiser.state_dict()
    assert pulled.keys() == here.keys() and all(torch.equal(pulled[name], here[name]) for name in here)
