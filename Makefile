PYTHON ?= python3
BIN := .venv/bin
NOTEBOOK := notebooks/resnet18.ipynb
PARAMS ?=
DATA_ROOT ?=
WORKERS ?= 2
UNIT_TESTS := $(addprefix tests/,calibration compression decomposition models network planning trials test_house.py test_environment.py)
LOCKED_PYTHONS := 3.11 3.14
NEWEST := python$(lastword $(LOCKED_PYTHONS))
TO_CLASSIFY := digits mnist cifar10 imagenet
TO_SEGMENT := phantoms brain_tumor
NOTEBOOKS ?= $(if $(filter $(TO_CLASSIFY),$(PARAMS)),,unet) $(if $(filter $(TO_SEGMENT),$(PARAMS)),,resnet18 vgg16 alexnet) $(if $(filter $(TO_CLASSIFY) $(TO_SEGMENT),$(PARAMS)),,own)
export PYTHONUNBUFFERED := 1

.PHONY: help demo check test types tests test-newest docs notebooks notebooks-sync lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

demo: .venv/.runtime  ## the whole path on the embedded digits: notebook, log, table, pictures
	$(BIN)/papermill $(NOTEBOOK) results/resnet18-digits.ipynb --no-progress-bar --log-output
	$(BIN)/python jsonify_logs.py
	$(BIN)/python analyze_results.py

notebooks: .venv/.runtime  ## in batch those that a parameter file fits: make notebooks PARAMS=mnist DATA_ROOT=data [NOTEBOOKS="vgg16"]
	@failed=; for name in $(NOTEBOOKS); do \
		echo "== $$name"; \
		$(BIN)/papermill notebooks/$$name.ipynb results/$$name$(PARAMS:%=-%).ipynb --no-progress-bar --log-output \
			$(PARAMS:%=-f notebooks/params/%.yaml) $(DATA_ROOT:%=-p data_root %) || failed="$$failed $$name"; \
	done; \
	for name in $(NOTEBOOKS); do \
		case " $$failed " in *" $$name "*) echo "failed: $$name";; *) echo "done:   $$name";; esac; \
	done; test -z "$$failed"

check: .venv/.development  ## linter, types, imports and the unit tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal -m "not slow" $(UNIT_TESTS)

test: .venv/.development .venv/.documentation  ## every linter, type check and test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(MAKE) --jobs=2 types tests

types:  # beside the tests, because it keeps one core busy only
	$(BIN)/mypy

tests:
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

test-newest:  ## the same as check, of the last commit with the newest locked Python, if this machine has it
	@if $(NEWEST) -c "" 2> /dev/null; then \
		rm -rf results/newest && git clone --quiet . results/newest && $(MAKE) -C results/newest check PYTHON=$(NEWEST); \
	else \
		echo "$(NEWEST) is not on this machine, so nothing was tested with it"; \
	fi

docs: .venv/.documentation  ## the site with guides, API and executed notebooks, in results/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "results/site/index.html"

notebooks-sync: .venv/.development  ## write each notebook's .ipynb anew from its .py
	$(BIN)/jupytext --update --to ipynb notebooks/*.py

lock: .venv/.development  ## write the lock files with hashes anew from requirements.txt
	@for version in $(LOCKED_PYTHONS); do \
		$(BIN)/uv pip compile requirements.txt --universal --python-version $$version --generate-hashes --no-annotate \
			--upgrade --quiet --custom-compile-command "make lock" \
			--output-file requirements-py$$(echo $$version | tr -d .).lock || exit 1; \
	done

clean:  ## remove the environment and everything that runs wrote
	rm -rf .venv results/* logs/*.log logs/*.json logs/*.safetensors logs/*.onnx logs/*.journal* logs/*.checkpoint

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + " (set PYTHON=...)")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.runtime: .venv/.created requirements.txt pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/.development: .venv/.runtime requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/.documentation: .venv/.created requirements-docs.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@
