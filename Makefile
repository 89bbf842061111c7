# Everything a newcomer needs: `make demo` and `make test`. Each sets itself up.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# One command, no file edited: make train SOURCE=kaggle224 RAW=<folder> MODELS=unet,unetr BUDGET=full
SOURCE ?= sample
RAW ?= data/raw/$(SOURCE)
SCHEMA ?=
MODELS ?= unet,unetr
BUDGET ?= smoke
TEST_SITES ?=
TEST_PATIENTS ?=
VAL ?= 0.2
SET = -S source='$(SOURCE)' -S raw="'$(RAW)'" -S schema="'$(SCHEMA)'" -S 'models=[$(MODELS)]' -S budget='$(BUDGET)' \
  -S split.test_sites="'$(TEST_SITES)'" -S split.test_patients="'$(TEST_PATIENTS)'" -S split.val='$(VAL)'

.PHONY: help setup setup-dev lab demo data train export test check lint readme lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  data and train take SOURCE=sample|kaggle224|roi RAW=<folder> SCHEMA=kaggle3|bcss3|bcss5 MODELS=unet,unetr"
	@echo "  BUDGET=smoke|full TEST_SITES=OL,LL TEST_PATIENTS=TCGA-A1-A0SK VAL=0.2 (VAL=0: no validation)"

$(VENV)/.pipeline: requirements.txt setup.py settings.ini
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"Python 3.10 to 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -r requirements.txt
	$(VENV)/bin/python -m pip install -q --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.pipeline requirements_dev.txt
	$(VENV)/bin/python -m pip install -q -r requirements_dev.txt
	@touch $@

setup: $(VENV)/.pipeline ## create .venv with what the pipeline needs, all versions pinned

setup-dev: $(VENV)/.dev ## add nbdev, JupyterLab, ruff and pytest

lab: setup-dev ## open JupyterLab on the chapters, with this project's kernel
	jupyter lab --notebook-dir=. nbs/index.ipynb

demo: setup ## sample -> UNet and UNETR -> comparison, about 8 minutes on two cores
	$(MAKE) --no-print-directory train SOURCE=sample RAW=data/raw/sample SCHEMA= MODELS=unet,unetr BUDGET=smoke TEST_SITES= TEST_PATIENTS= VAL=0.2

data: setup ## make the sample, or check, pack and split the source you name
	@$(raw_there)
	dvc exp run $(SET) prepare

train: setup ## the whole pipeline on the source you name, then the table
	@$(raw_there)
	dvc exp run $(SET) compare
	@python -c 'from bcss_nb.compare import print_comparison; print_comparison()'

define raw_there
case "$(SOURCE)" in sample|kaggle224|roi) ;; *) echo "Unknown source $(SOURCE): choose one of sample, kaggle224, roi." >&2; exit 1;; esac; \
if [ "$(SOURCE)" != sample ] && [ ! -e "$(RAW)" ]; then \
  echo "The raw folder $(RAW) does not exist: give RAW=<folder that holds the $(SOURCE) release> (README, section Data)." >&2; exit 1; fi
endef

export: setup-dev ## notebooks -> module, outputs cleaned of noise
	nbdev_export
	nbdev_clean

test: check lint ## every check: tree in step, ruff, notebooks, pytest with coverage
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --do_print
	python -m pytest --cov --cov-report=term

check: setup-dev ## is the module what the notebooks say, and are they clean?
	@python tests/in_step.py

lint: setup-dev ## ruff over modules, tests and notebooks
	ruff check .

readme: setup-dev ## README.md from nbs/index.ipynb
	python tests/in_step.py --write-readme

lock: setup-dev ## pin the whole environment again from settings.ini
	python tests/lock.py

clean: ## remove what runs made (not the environment, not raw data)
	rm -rf runs reports/*.ipynb reports/*.json reports/*.csv reports/evaluation reports/figures data/processed data/smoke data/scratch
