# Every target works as the first command on a fresh machine: it makes .venv when it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(VENV)/.native

.PHONY: demo test distributed hostile machines kernels gpu package native slow check bench noise accuracy modes eigenvalues slices scaling reliability tracker study coverage peers digest format clean

demo: $(NATIVE) ## train a small CNN on real digits, probe its checkpoints and their spectra, write demo/report.html
	OMP_NUM_THREADS=1 $(BIN)/python -m fastscape.zoo zoo:cnn zoo:digits --out demo/checkpoints
	OMP_NUM_THREADS=1 $(BIN)/fastscape multifractal zoo:cnn --data 'zoo:digits?samples=128' --checkpoint demo/checkpoints --batch-norm batch --budget 60s --spectrum --out demo --force

test: $(NATIVE) ## the default test suite, on two cores; worksteal keeps neighbours, which share compilations, in one process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

MACHINES ?= # options, e.g. make machines MACHINES='--only avx2 --folder tests/numerics'
machines: $(NATIVE) ## the numerical tests in six arithmetics that this processor can emulate; an hour, --quick: minutes
	$(BIN)/python benchmarks/machines.py $(MACHINES)

kernels: $(NATIVE) ## tests of the kernels alone, for all chips: contract, interpreter, compiled and simulated
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/ops tests/ptx -m "not gpu"

gpu: $(NATIVE) ## the comparisons that need a CUDA device
	$(BIN)/python -m pytest tests/ops -m gpu

package: $(NATIVE) ## install beside the torch that is there, with a compiler and without; each takes seconds
	rm -rf build dist
	time env FASTSCAPE_NATIVE=require $(BIN)/python -m pip install --quiet --no-deps --target dist/native .
	rm -rf build
	time env FASTSCAPE_NATIVE= CC=absent CXX=absent $(BIN)/python -m pip install --quiet --no-deps --target dist/pure .
	cd dist/native && FASTSCAPE_NATIVE=require $(CURDIR)/$(BIN)/python -m fastscape status
	cd dist/pure && FASTSCAPE_NATIVE= $(CURDIR)/$(BIN)/python -m fastscape status

native: $(STAMP) ## rebuild the native library after a change in csrc; an error where it cannot be built
	FASTSCAPE_NATIVE=require $(BIN)/python -W ignore setup.py --quiet build_ext --inplace
	touch $(NATIVE)

distributed: $(NATIVE) ## tests of several processes on this machine: two and four under torchrun, by gloo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed -m distributed

hostile: $(NATIVE) ## two thousand damaged and hostile files: named errors in bounded memory; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hostile

slow: $(NATIVE) ## tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(NATIVE) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(NATIVE)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

BENCH = $(BIN)/python -m pytest benchmarks --benchmark-only -q -p no:cacheprovider

bench: $(NATIVE) ## benchmarks with one and two threads; writes benchmarks/RESULTS.md
	mkdir -p benchmarks/results
	OMP_NUM_THREADS=1 $(BENCH) --benchmark-json=benchmarks/results/bench-1.json
	OMP_NUM_THREADS=2 $(BENCH) --benchmark-json=benchmarks/results/bench-2.json
	$(BIN)/python benchmarks/report.py

noise: $(NATIVE) ## what float32 subtraction gets wrong, radius by radius
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/float32_noise.py

accuracy: $(NATIVE) ## errors of even responses by scale and arithmetic: the README's figure
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/difference_accuracy.py
	$(BIN)/python benchmarks/report.py

modes: $(NATIVE) ## the README's table: a training run in three arithmetics
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/three_modes.py
	$(BIN)/python benchmarks/report.py

eigenvalues: $(NATIVE) ## the README's spectrum, and one eigenvalue three times by power iteration without deflation
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/repeated_eigenvalues.py
	$(BIN)/python benchmarks/readme.py

study: $(NATIVE) ## three architectures, three seeds each, on one page: study/study.html; 5 minutes; then the README's tables
	OMP_NUM_THREADS=1 $(BIN)/fastscape study --quick --out study
	$(BIN)/python benchmarks/study.py

COVERAGE ?= # options, e.g. make coverage COVERAGE='--quick' or '--repetitions 400 --seed 1'
coverage: $(NATIVE) ## how often 95 % intervals hold the truth: docs/coverage.md; 15 minutes, resumes where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.coverage $(COVERAGE)

DIGEST ?= # options, e.g. make digest DIGEST='--write before.json', and after a change DIGEST='--compare before.json'
digest: $(NATIVE) ## the bits of every public result on fixed seeds: shows that a change moves no number; 2 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/digest.py $(DIGEST)

slices: $(VENV)/.bench $(NATIVE) ## planes of losses beside loss_landscapes and plain forwards; 10 minutes
	OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks $(BIN)/python benchmarks/slices.py

SCALING ?= # options, e.g. make scaling SCALING='--only memory' or '--quick'
scaling: $(NATIVE) ## several processes against one: efficiency, costs, memory, bytes, 100 kills; needs two idle cores; 12 minutes
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.scaling $(SCALING)
	$(BIN)/python benchmarks/report.py

RELIABILITY ?= # options, e.g. make reliability RELIABILITY='--only files --count 200'
reliability: $(NATIVE) ## threads, exceptions, Ctrl-C, hostile files and bad inputs, thousands from a seed; 20 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reliability.py $(RELIABILITY)
	$(BIN)/python benchmarks/report.py

tracker: $(NATIVE) ## share of a training run that a tracker takes, and the products that warm starts save
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tracker.py

PEERS ?= # options, e.g. make peers PEERS='--network gpt --package products --repeats 3'
peers: $(VENV)/.bench $(NATIVE) ## fastscape, its peers and plain torch: 3 hours, 1 without resnet18; writes RESULTS.md
	OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks $(BIN)/python -m peers $(PEERS)
	$(BIN)/python benchmarks/report.py

$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP) $(NATIVE)

$(NATIVE): $(STAMP) $(wildcard csrc/*.h csrc/cpu/*) # after a change in csrc; without a compiler it says so and goes on
	$(BIN)/python -W ignore setup.py --quiet build_ext --inplace
	touch $(NATIVE)

clean:
	rm -rf $(VENV) build dist demo study fastscape/*.so fastscape/*.so.json *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
