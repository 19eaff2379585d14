"""Triton's interpreter, which runs GPU kernels on the CPU, has to be asked for before anything imports triton; torch does."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
