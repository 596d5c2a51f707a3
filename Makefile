# Every target sets up what it needs: a bare clone with Python 3.11 or newer is enough.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

.PHONY: demo test test-slow check micro miniature clean

MINIATURE := paper/miniature/dvc.yaml
MICRO := resnet8-ce $(addprefix resnet20-resnet8-,kd kd_tlcutmix_pick crd_kd_demo)

demo: $(VENV)/demo.ok  ## teacher, students by four methods, table and figure
	dvc repro
	kdflow table

test: $(VENV)/dev.ok  ## the default suite
	pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/dev.ok  ## the end-to-end runs with real DVC, all models at all sizes
	pytest -m slow -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/dev.ok  ## lint, format, types, settings
	ruff check .
	ruff format --check .
	mypy
	kdflow check
	kdflow plan --check
	kdflow plan --check --paper paper/miniature

micro: $(VENV)/demo.ok  ## some cells of the miniature, held against their baseline
	dvc repro --force $(MICRO:%=$(MINIATURE):cell@digits-%)
	kdflow drift --paper paper/miniature

miniature: $(VENV)/demo.ok  ## all tables and figures of the paper, tiny, and their page
	dvc repro $(MINIATURE):report

clean:  ## the environment, the outputs and the checkpoints of unfinished runs; DVC's cache stays
	rm -rf $(VENV) .kdflow data/*/ data/*.h5

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdflow needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.ok: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/dev.ok: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/demo.ok
