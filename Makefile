# Everything runs in .venv, made here from packages alone: no root, no GPU, nothing installed elsewhere.
#   make demo     environment, example clips -> store -> a few training steps -> scores, pictures, report
#   make test     environment, then the tests
# STACK=cuda13 takes torch 2.11 and DALI for CUDA 13 instead of torch 2.10 and DALI for CUDA 12.
PYTHON ?= python3
STACK ?= cuda12
PY := .venv/bin/python
READY := .venv/.ready-$(STACK)
SCORED := runs/ez_vsl_demo-s0/evaluation
# Tests and demo share small machines: one thread a process is as fast there, and gives the same numbers everywhere.
SINGLE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: env demo test test-slow lint format bench clean

env: $(READY)

$(READY): pyproject.toml constraints/$(STACK).txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints/$(STACK).txt uv
	.venv/bin/uv pip install --quiet --python $(PY) -c constraints/$(STACK).txt -r pyproject.toml --extra $(STACK) --extra dev
	rm -f .venv/.ready-*
	touch $@

demo: env
	$(SINGLE) $(PY) -m preprocess pack manifest examples/clips stores/demo --frontend logmel64
	$(SINGLE) $(PY) train.py configs/ez_vsl_demo.yaml --resume
	test -f $(SCORED)/report.html || $(SINGLE) $(PY) evaluate.py runs/ez_vsl_demo-s0 --out $(SCORED) --overwrite
	@echo
	@echo "A dozen clips show the path from files to scores, not a trained model."
	@echo "Report:   $(SCORED)/report.html"
	@echo "Pictures: $(SCORED)/overlays/"

test: env
	$(SINGLE) $(PY) -m pytest -n 2 -m "not slow and not gpu"

# The slow tests exercise what these extras bring.
EXTRAS := --extra ray --extra timm --extra app --extra onnx --extra tour
test-slow: env
	.venv/bin/uv pip install --quiet --python $(PY) -c constraints/$(STACK).txt -r pyproject.toml $(EXTRAS)
	$(SINGLE) $(PY) -m pytest -n 2 -m "slow and not gpu"

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

format: env
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: env
	$(PY) -m benchmarks all

clean:
	rm -rf .venv build runs stores .pytest_cache .ruff_cache
