"""sedaq: fit a diffusion model into a given size by sensitivity-guided additive quantization.

Importing it makes diffusers able to load folders that sedaq wrote; everything else is imported when it is first used.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

if sys.argv[0].endswith("/sedaq") or (sys.argv[0] == "-m" and "sedaq" in sys.orig_argv):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the command is still imported ends it without a word; cli.main takes over

from .aq.modules.integration import register as _register

__version__ = "0.1.0"

_PUBLIC = {
    "Run": "api",
    "Budget": "search.config",
    "SearchConfig": "search.config",
    "SamplingConfig": "models.sampling",
    "TuneConfig": "aq.tuning.settings",
    "FitResult": "sensitivity.predictor.fitting",
    "SearchResult": "search.engine",
    "EvaluationResult": "sensitivity.evaluation",
    "LearnResult": "sensitivity.prior.learn",
    "evaluate": "api",
    "learn": "sensitivity.prior.learn",
    "uniform_plan": "search.unmeasured",
    "inspect": "api",
    "load": "models.loading",
    "load_file": "aq.export.single_file",
    "Subject": "models.subject",
    "Plan": "aq.plans.plan",
    "Format": "aq.formats",
    "encode": "aq.encoder.encoder",
    "Encoding": "aq.encoding",
    "quantize_": "aq.modules.quantize",
    "AQLinear": "aq.modules.layers",
    "AQConv2d": "aq.modules.layers",
    "SedaqConfig": "aq.modules.integration",
    "InputError": "errors",
    "SedaqError": "errors",
}
__all__ = ["__version__", *_PUBLIC]

_register()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sedaq' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
