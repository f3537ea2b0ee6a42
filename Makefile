# Everything a person types. `make pilot` and `make test` set up what they need from python3.11 and make alone.
.ONESHELL:
.SHELLFLAGS := -eu -c
PYTHON ?= python3.11
# Bytecode is compiled at the install: importing transformers uncompiled takes two to three times as long.
UV := $(or $(shell command -v uv),.uv/bin/uv)

.PHONY: help setup pilot test quick fuzz soak check audit format lock image image-test clean
help:          ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## */\t/' | expand -t 14

setup: .venv/.ready   ## the locked environment in .venv, from wheels/ alone

# Wheels come by hash, through whatever index this machine's pip has; no file of the project names one.
wheels/.ready: requirements.lock
	@mkdir -p wheels
	get() {
		$(PYTHON) -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
			--requirement requirements.lock --dest wheels "$$@"
	}
	get --no-index --find-links wheels >/dev/null 2>&1 || {
		echo "setup: fetching the locked wheels (about 3 GB, once)"
		get 2>&1 | grep -v '^WARNING: Location' || true
	}
	test $$(ls wheels | grep -c '\.whl$$') -ge $$(grep -c '==' requirements.lock) || \
		{ echo "setup: some wheels could not be fetched; run '$(PYTHON) -m pip download --require-hashes --no-deps -r requirements.lock -d wheels' to see why"; exit 1; }
	touch $@

.uv/bin/uv: wheels/.ready
	@$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check --no-index --find-links wheels uv 2>&1 | grep -v '^WARNING: Location' || true
	test -x $@

.venv/.ready: wheels/.ready pyproject.toml uv.lock | $(filter .uv/bin/uv,$(UV))
	@echo "setup: installing into .venv"
	UV_PYTHON_DOWNLOADS=never $(UV) sync --quiet --locked --python $(PYTHON) --compile-bytecode
	touch $@

pilot: setup   ## Phase A on the built-in sample: 10 + 10 images, 1 epoch, CPU or GPU, no network, no token
	@rm -rf outputs/pilot
	.venv/bin/recipe train --preset pilot

test: setup    ## all tests
	@.venv/bin/python -m pytest -n 2 --dist loadfile

QUICK := test_house.py test_config.py evaluation model/test_loss.py data/test_geometry.py data/test_annotations.py \
	data/test_augment.py data_prep/test_folder.py data_prep/test_yolo.py prediction/test_tiles.py report/test_advice.py
quick: setup   ## the tests that take under a minute together
	@.venv/bin/python -m pytest -n 2 -q $(addprefix tests/,$(QUICK))

fuzz: setup    ## files, flags and kills by the thousand, seeded; one table, minutes
	@.venv/bin/python tests/fuzz.py

soak: setup    ## 2,000 steps with evaluations, saves and pushes: does anything grow, is anything left?
	@.venv/bin/python tests/soak.py

check: setup   ## format, lint and types
	@.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

audit: setup   ## licences of the lock, known vulnerabilities, outputs/sbom.json; offline
	@.venv/bin/python tests/audit.py

format: setup  ## format, and mend what the linter can
	@.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock: setup    ## refresh requirements.lock and uv.lock
	@$(UV) pip compile --quiet --no-config --upgrade --generate-hashes --no-header --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 pyproject.toml --group dev --output-file requirements.lock
	rm -rf wheels
	$(MAKE) wheels/.ready
	$(UV) lock --upgrade

image: wheels/.ready        ## docker build -t recipe .
	@sh tests/image.sh build

image-test: wheels/.ready   ## build the image and run Phase A inside it with no network
	@sh tests/image.sh test

clean:         ## removes .venv and the tools' caches; wheels/ and outputs/ stay
	@rm -rf .venv .uv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
