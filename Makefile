# Every target installs what it needs. A bare clone and Python 3.11 or newer are enough.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
# pip does not compile modules (below). Without this line Python might not store compiled modules and compile torch at
# every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-long test-gpu check docs micro miniature serve clean scm

MICRO := resnet8-ce $(addprefix resnet20-resnet8-,kd kd_tlcutmix_pick crd_kd_demo)

demo: scm  ## the demo: teacher, students by four methods, table and figure
	dvc repro
	kdflow table

TESTS := not slow
PROCESSES := 4
PARALLEL = -n logical --maxprocesses $(PROCESSES) --dist loadgroup --no-loadscope-reorder
test-slow test-long: PROCESSES := 2
test: $(VENV)/dev.ok  ## the default tests; with TESTS="not long" those of CI, in one run, so that no core waits
	pytest -m "$(TESTS)" $(PARALLEL)

test-slow: $(VENV)/dev.ok  ## end-to-end tests with real DVC and Prefect, all models at all sizes
	pytest -m "slow and not long" $(PARALLEL)

test-long: $(VENV)/dev.ok  ## the slow tests that CI does not run
	pytest -m long $(PARALLEL)

test-gpu: $(VENV)/dev.ok  ## on a machine with a GPU: the tests that need one, then the speed of training on it
	python -c 'import torch; torch.cuda.is_available() or exit("no GPU: torch.cuda.is_available() is False")'
	pytest -m gpu
	python benchmarks/gpu.py --json gpu.json

check: $(VENV)/dev.ok  ## lint, format, types, wording, settings, generated files
	ruff check .
	ruff format --check .
	mypy
	python tests/check_prose.py
	kdflow check
	kdflow plan --check
	kdflow plan --check --paper paper/miniature
	kdflow plan --check --paper paper/micro
	kdflow plan --check --paper evidence
	kdflow plan --check --paper zoo

docs: $(VENV)/demo.ok  ## the documentation site, in site/
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict

micro: scm  ## four cells with a teacher from a file, compared with their baseline
	dvc --cd paper/micro repro --force $(MICRO:%=cell@digits-%)
	kdflow drift --paper paper/micro

miniature: scm  ## all tables and figures of the paper, tiny, and the HTML page
	dvc --cd paper/miniature repro report

PORT := 4200
serve: export PREFECT_HOME := $(CURDIR)/.kdflow/server
serve: export PREFECT_API_URL := http://127.0.0.1:$(PORT)/api
serve: export PREFECT_SERVER_ANALYTICS_ENABLED := false
serve: scm  ## Prefect server, deployments and a worker on this machine, until Ctrl-C
	mkdir -p $(PREFECT_HOME)
	python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT)))'  # fails if the port is in use
	python -m kdflow.core.parent $$$$ prefect server start --host 127.0.0.1 --port $(PORT) >$(PREFECT_HOME)/server.log 2>&1 & \
	server=$$!; trap 'kill $$server; wait $$server' EXIT; trap exit HUP INT TERM; \
	until prefect work-pool create kdflow --type process --overwrite 2>$(PREFECT_HOME)/error.log; do \
	  kill -0 $$server && sleep 2 || exit 1; \
	done; \
	prefect --no-prompt deploy --all && \
	KDFLOW_ROOT=$(CURDIR) prefect worker start --pool kdflow

# DVC refuses to run without a git repository, unless it is configured so. Some trees have none, such as a ZIP download.
scm: $(VENV)/demo.ok  ## configure DVC for a tree without git, or with it again
	@if [ -e .git ] || git rev-parse 2>/dev/null; then setting=--unset; else setting=true; \
	  echo 'no git repository: DVC runs without one, except for dvc exp, which needs: git init && git add -A && git commit'; fi; \
	for folder in $(patsubst %/.dvc/config,%,$(wildcard ./.dvc/config */.dvc/config */*/.dvc/config)); do \
	  if grep -qs no_scm $$folder/.dvc/config.local; then [ $$setting = true ]; else [ $$setting = --unset ]; fi || \
	  dvc --cd $$folder config --local core.no_scm $$setting || exit; \
	done

clean:  ## remove environment, outputs and checkpoints; DVC's cache stays
	rm -rf $(VENV) .kdflow data/*/ data/*.h5 paper/data paper/*/data evidence/data zoo/data

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdflow needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.ok: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/dev.ok: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@ $(VENV)/demo.ok
