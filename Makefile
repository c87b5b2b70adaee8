# make demo: set up, and the main job on the embedded phantom cohort.  make test: set up, and the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
DEMO ?= demo
CONFIGS := bundles/isimed/configs
RECIPE := '$(CONFIGS)/pretrain.yaml','$(CONFIGS)/encoder_small.yaml','$(CONFIGS)/demo.yaml'

.PHONY: demo test test-floor test-label check format bench setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[logging,figures,dev]"
	# alone: of what it asks for besides, timm brings a torchvision that may not fit this torch, and is not needed
	$(BIN)/python -m pip install --quiet --no-deps "dynamic-network-architectures>=0.3.1"
	touch $@

demo: setup
	rm -rf $(DEMO)/isimed
	$(BIN)/python -m anatomy_ssl phantom --output $(DEMO)/phantoms --subjects 24 --seed 0
	$(BIN)/python -m monai.bundle run training --config_file "[$(RECIPE)]" \
	  --dataset_dir $(DEMO)/phantoms --output_dir $(DEMO)/isimed
	$(BIN)/python -m monai.bundle run evaluating --config_file "[$(RECIPE),'$(CONFIGS)/evaluate.yaml']" \
	  --dataset_dir $(DEMO)/phantoms --output_dir $(DEMO)/isimed
	@echo
	@cat $(DEMO)/isimed/evaluation/evaluation.md
	@echo "figures: $(DEMO)/isimed/evaluation/figures, crops: $(DEMO)/isimed/pictures, curves: tensorboard --logdir $(DEMO)/isimed"

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

# the oldest MONAI that setup.cfg admits, in an environment of its own
test-floor:
	$(MAKE) test VENV=$(VENV)-floor CONSTRAINTS=constraints-floor.txt

# MONAI Label in an environment of its own: its server infers, trains and infers again with the bundles
test-label: $(VENV)-label/.installed
	$(VENV)-label/bin/python -m pytest tests/label

$(VENV)-label/.installed: setup.cfg constraints-label.txt
	$(PYTHON) -m venv $(VENV)-label
	$(VENV)-label/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-label/bin/python -m pip install --quiet --constraint constraints-label.txt torch
	$(VENV)-label/bin/python -m pip install --quiet --constraint constraints-label.txt monailabel --editable . pytest
	$(VENV)-label/bin/python tests/label/mend_torchvision.py
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# plain ways beside ours, about 20 minutes in which nothing else should run; BENCH="feeds --quick" for a part
bench: setup
	$(BIN)/python -m benchmarks $(BENCH) --json bench.json --plot bench.png --markdown bench.md

clean:
	rm -rf $(VENV) $(VENV)-floor $(VENV)-label $(DEMO) build
