# Set-up, demo and tests; each target is enough on a fresh machine with Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
export PYTHONSAFEPATH := 1

.PHONY: demo test test-slow lint docs sanitize wheel

.venv/installed: pyproject.toml setup.py constraints.txt $(wildcard kernels/csrc/*.cpp kernels/csrc/*.h aq/csrc/*.cpp aq/csrc/*.h)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# What tests need beside it; the package is not installed anew for that, which would compile it again.
.venv/tools: .venv/installed
	.venv/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['test'], sep='\n')" > .venv/tools.txt
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r .venv/tools.txt
	touch $@

demo: .venv/installed
	.venv/bin/sedaq demo

# One process a core, each with one thread of torch; the tests of a file stay together, for they share what was expensive to make.
test: .venv/tools
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv/bin/pytest -n logical --maxprocesses 8 --dist loadfile

test-slow: .venv/tools
	.venv/bin/pytest -m slow

# mypy finds the package by its name, so it is shown the root under that name.
lint: .venv/tools
	.venv/bin/ruff check .
	mkdir -p .venv/typed && ln -sfn ../.. .venv/typed/sedaq
	cd .venv/typed && ../bin/mypy --config-file sedaq/pyproject.toml --cache-dir ../mypy -p sedaq

# Numbers and tables of README.md and docs/, from benchmarks/results; the script imports its neighbours, which a safe path forbids.
docs: .venv/tools
	PYTHONSAFEPATH= .venv/bin/python benchmarks/render_docs.py $(DOCS)

# The C++ kernels and the encoder's loops, apart from Python, with what finds wrong addresses and undefined behaviour.
sanitize:
	mkdir -p build
	$(CXX) -std=c++17 -O1 -g -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Werror -Wno-psabi -Wno-uninitialized \
		kernels/csrc/*.cpp tests/kernels/products.cpp -o build/products
	build/products
	$(CXX) -std=c++17 -O1 -g -fopenmp -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Werror -Wno-psabi -Wno-uninitialized \
		aq/csrc/*.cpp tests/aq/encoder/loops.cpp -o build/loops
	build/loops

wheel: .venv/installed
	.venv/bin/pip wheel --quiet --disable-pip-version-check --no-deps -w build/wheel .
