# `make demo` takes a bare machine to a trained DAN, `make test` to a green test
# suite. README.md has the same as plain pip commands.
PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.12.1 torchvision==0.27.1
MMCV := onedl-mmcv==2.3.6
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# All cores: mmcv would use a part of them.
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help demo env fuzz lint docs test clean

help:
	@echo 'make demo   train DAN and plain ResNet-18 on synthetic faces, in minutes,'
	@echo '            and tell the expression of a portrait'
	@echo 'make env    the environment .venv, with mmcv and its compiled ops'
	@echo 'make test   that, the linters, the documentation and the tests'
	@echo 'make lint   the linters alone'
	@echo 'make docs   the documentation alone, into site/'
	@echo 'make fuzz   attack it with random files and requests, until Ctrl-C'
	@echo 'make clean  remove .venv'

# Everything but MMDet, without a compiler.
.venv/base: setup.py dan_mm/version.py Makefile
	@$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) -c 'import runpy, sys; table = runpy.run_path("dan_mm/version.py"); low, high = table["PYTHON"]; found = ".".join(map(str, sys.version_info[:2])); sys.exit(None if table["fits"](found, low, high) else f"Found Python {found}, expected >={low},<{high}. Install one and run: make clean, make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@# An environment made by an interrupted run is completed, not made anew.
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip .venv || { \
		echo 'Found no venv in $(PYTHON), expected it. Install it, for example with: apt-get install python3-venv'; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip || { \
		echo 'Found no pip in $(PYTHON), expected it. Install it, for example with: apt-get install python3-venv, and run: make clean'; exit 1; }
	$(BIN)/python -m pip install --upgrade pip 'setuptools<82' wheel ninja
	$(BIN)/python -m pip install $(TORCH)
	@# Built apart from torch it has no compiled ops: not for pip's cache,
	@# where the detector would find it. Its dependencies are ours, but for
	@# their bounds.
	$(BIN)/python -m pip show --quiet onedl-mmcv 2>/dev/null || \
		$(BIN)/python -m pip install --no-cache-dir --no-deps $(MMCV)
	$(BIN)/python -m pip install -e .
	@$(BIN)/python -c 'import cv2' || { echo 'OpenCV does not load, for the reason above. It needs two libraries of the system: apt-get install libgl1 libglib2.0-0'; exit 1; }
	@touch $@

demo: .venv/base
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	$(BIN)/python tools/demo/train_synthface.py
	$(BIN)/python tools/demo/predict_astronaut.py

env: .venv/ready

.venv/ready: .venv/base
	@command -v $${CXX:-c++} >/dev/null || { echo 'Found no C++ compiler, expected one to build the ops of mmcv. Install it, for example with: apt-get install build-essential'; exit 1; }
	@# In isolation from torch, or from the cache of such a build, mmcv comes
	@# silently without ops.
	$(BIN)/python -c 'import torch, mmcv._ext' 2>/dev/null || { \
		echo 'Building mmcv with its ops: 10 to 40 minutes on 2 cores.'; \
		$(BIN)/python -m pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps $(MMCV); }
	$(BIN)/python -m pip install -e '.[detection,web,dev]'
	@$(BIN)/python -c 'import torch, mmcv._ext' || { echo 'Found an mmcv without compiled ops, expected one with them. Remove .venv and run make again; the log above shows why the build left them out.'; exit 1; }
	@touch $@

lint: env
	PATH="$(CURDIR)/$(BIN):$$PATH" pre-commit run --all-files --show-diff-on-failure

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: env lint docs
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# With other examples each time, until one fails.
fuzz: env
	@echo 'Ctrl-C ends it. What fails is kept in fuzz_failures/.'
	@while FUZZ_FAILURES="$(CURDIR)/fuzz_failures" $(BIN)/python -m pytest -q -x tests/security/test_fuzz.py; do :; done; exit 1

clean:
	rm -rf .venv
