"""How long a newcomer waits:  python benchmarks/two_commands.py [--tests]      → results/two_commands.json, results/demo.json, docs/front.png

Clones the repository into an empty folder and times `make demo` with its set-up, `make demo` again, and if asked the tests with theirs. The
stand-in for a processor without AVX-512 is SEDAQ_MAX_ISA=avx2.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from demo import keep_demo
from results import keep

from sedaq.kernels.timing import clock

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true")
    tests = parser.parse_args().tests
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "sedaq"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        steps = {"setup": [".venv/installed"], "demo": ["demo"], "demo_again": ["demo"]}
        if tests:
            steps |= {"setup_tests": [".venv/tools"], "tests": ["test"]}
        seconds = {}
        for step, targets in steps.items():
            start = clock()
            subprocess.run(["make", "-C", str(clone), *targets], check=True)
            seconds[step] = round(clock() - start, 1)
            print(step, seconds[step], flush=True)
        keep("two_commands", "python benchmarks/two_commands.py", {"seconds": seconds, "max_isa": os.environ.get("SEDAQ_MAX_ISA")})
        keep_demo(clone / "build" / "demo")


if __name__ == "__main__":
    main()
