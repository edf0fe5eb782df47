# Set-up and checks. Everything runs in .venv; nothing is installed outside it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STUDY := experiments/icbm152
NAME := icbm152-$(shell date +%Y%m%d-%H%M%S)

# Each folder of tests has a process of its own, and each file of those that load several runtimes: with onnxruntime,
# OpenVINO, TensorRT and torch in one process a later fork or build ended it by a segmentation fault. Code 5: a part
# without such tests.
PARTS := tests/test_*.py $(filter-out tests/deploy/,$(wildcard tests/*/)) tests/deploy/test_*.py tests/deploy/*/
define tested
@failed=; for part in $(PARTS); do echo "$$part"; \
	$(BIN)/python -m pytest -m "$(1)" $$part; code=$$?; \
	[ $$code = 0 ] || [ $$code = 5 ] || failed="$$failed $$part"; done; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }
endef

.PHONY: help demo test test-all test-gpu test-oldest lint types lock clean

help:
	@echo "make demo         install, and run a whole sweep on a real head: prepare, sweep, compare, export, predict"
	@echo "make test         install, and run the quick tests (make test-all: the slow ones too)"
	@echo "make lint types   ruff, mypy"
	@echo "make test-gpu     the tests that need a CUDA device"
	@echo "make test-oldest  the quick tests with the oldest versions that pyproject.toml allows"
	@echo "make lock         write constraints.txt anew from what .venv holds"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,onnx]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.demo

demo: export MEDLIGHT_DATA = demo
demo: $(VENV)/.demo
	$(BIN)/python $(STUDY)/cut.py demo/icbm152
	$(BIN)/medlight data prepare -c $(STUDY)/fit.yaml
	$(BIN)/medlight sweep -c $(STUDY)/sweep.yaml --name $(NAME)
	$(BIN)/medlight compare $(NAME) --html demo/compare.html
	$(BIN)/medlight export $(NAME) demo/$(NAME)-bundle
	$(BIN)/medlight predict demo/$(NAME)-bundle demo/icbm152/images/front-left-low.nii.gz demo/prediction --truth demo/icbm152/labels
	@echo
	@echo "prediction over the truth   demo/prediction/front-left-low.png"
	@echo "comparison                  demo/compare.html"
	@echo "the runs in the MLflow UI   $(BIN)/medlight ui"

test: $(VENV)/.dev
	$(call tested,not slow and not gpu)

test-all: $(VENV)/.dev
	$(call tested,not gpu)

test-gpu: $(VENV)/.dev
	$(call tested,gpu)

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[dev]"
	.venv-oldest/bin/python -m pytest -m "not slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

lock: $(VENV)/.dev
	@echo '# Every version that was tested, on Python 3.11 and Linux. Written by `make lock`.' > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' >> constraints.txt

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache
