# make demo: set up, and the main job on the embedded phantom cohort.  make test: set up, and the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
DEMO ?= demo
CONFIGS := bundles/isimed/configs
RECIPE := '$(CONFIGS)/pretrain.yaml','$(CONFIGS)/encoder_small.yaml','$(CONFIGS)/demo.yaml'

.PHONY: demo test test-floor check format setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[logging,figures,dev]"
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

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-floor $(DEMO) build
