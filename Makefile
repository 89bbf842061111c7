# Everything a newcomer needs: `make demo` and `make test`. Each sets itself up.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
include deploy/gcp/gcp.mk
export PATH := $(abspath $(VENV))/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# 60,000 files are compiled when they are first imported, not all of them at the installation
unexport PYTHONDONTWRITEBYTECODE
# dvc exp run stashes what params.yaml held, and a stash needs a name even where nobody has told Git theirs
export GIT_AUTHOR_NAME := $(or $(GIT_AUTHOR_NAME),$(shell git config user.name),bcss_nb)
export GIT_AUTHOR_EMAIL := $(or $(GIT_AUTHOR_EMAIL),$(shell git config user.email),bcss_nb@localhost)
export GIT_COMMITTER_NAME := $(or $(GIT_COMMITTER_NAME),$(GIT_AUTHOR_NAME))
export GIT_COMMITTER_EMAIL := $(or $(GIT_COMMITTER_EMAIL),$(GIT_AUTHOR_EMAIL))

# One command, no file edited: make train SOURCE=kaggle224 RAW=<folder> MODELS=unet,unetr BUDGET=full
ifdef RAW
SOURCE ?= auto
endif
SOURCE ?= sample
OWN := data/raw/$(patsubst kaggle%,kaggle,$(SOURCE))
RAW ?= $(OWN)
# RAW as it was typed: Make would expand a dollar sign in it. q quotes a text for the shell
RAW_TEXT := $(if $(filter command environment,$(firstword $(origin RAW))),$(value RAW),$(RAW))
q = '$(subst ','\'',$(1))'
MODELS ?= unet,unetr
BUDGET ?= smoke
SEEDS ?= 42,43,44
# every parameter of these two files is an option, in capitals: VAL=0.1, TEST_SITES=OL,LL
PARAMETERS := $(shell sed -n 's/^\([a-z_]*\):.*/\1/p' params.yaml params/prepare.yaml | tr a-z A-Z)
GIVEN = $(foreach o,$(filter-out RAW,$(PARAMETERS)) SET,$(if $(filter-out undefined,$(origin $(o))),$(call q,$(o)=$(value $(o)))))
PIPELINE = VERBOSE='$(VERBOSE)' python tools/pipeline.py
OPTIONS = -- $(GIVEN) $(call q,RAW=$(RAW_TEXT))

GRID ?= params/train.yaml:lr=0.0005,0.0015,0.005
MODEL ?= unet

.PHONY: help repository setup setup-dev lab demo data train report sweep profile model serve monitor image-serve image-cuda image-check docker-repro docker-lab docs docs-serve remote export test bench check lint readme lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  data and train take SOURCE=sample|kaggle224|kaggle512|roi|auto RAW=<folder or zip> SCHEMA=kaggle3|bcss3|bcss5"
	@echo "  and every parameter of params/prepare.yaml in capitals, such as VAL=0.1 TEST_SITES=OL,LL; train also takes MODELS=unet,unetr"
	@echo "  BUDGET=smoke|full SEEDS=42,43,44 and SET=params/train.yaml:lr=0.003 for any other parameter; VERBOSE=1 shows everything;"
	@echo "  remote takes BUCKET=gs://bucket/path"

$(VENV)/.pipeline: requirements.txt requirements_serve.txt setup.py settings.ini
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "setup              $(VENV) with all versions pinned, once"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -q --no-compile -r requirements.txt -r requirements_serve.txt
	@$(VENV)/bin/python -m pip install -q --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.pipeline requirements_dev.txt
	@$(VENV)/bin/python -m pip install -q --no-compile -r requirements_dev.txt
	@touch $@

setup: $(VENV)/.pipeline ## create .venv with what the pipeline needs, all versions pinned

setup-dev: $(VENV)/.dev ## add nbdev, JupyterLab, ruff and pytest

lab: setup-dev ## open JupyterLab on the chapters, with this project's kernel
	jupyter lab --notebook-dir=. nbs/index.ipynb

demo: repository setup ## sample -> UNet and UNETR, three seeds each -> comparison and report, 15 minutes on two cores with the installation
	@$(MAKE) --no-print-directory train SOURCE=sample RAW=data/raw/sample SCHEMA= MODELS=unet,unetr BUDGET=smoke

data: repository setup ## make the sample, or fetch, check, pack and split the source you name
	@$(source_known)
	@case $(call q,$(SOURCE) $(RAW_TEXT)) in \
	  sample*|auto*) ;; \
	  "$(SOURCE) $(OWN)") python -c 'from bcss_nb.data.download import main; main("$(SOURCE)", "$(OWN)")' && { [ -e "$(OWN).dvc" ] || dvc add -q "$(OWN)"; } ;; \
	esac
	@$(raw_there)
	@$(PIPELINE) prepare $(OPTIONS)

remote: setup ## keep data and runs in a bucket: make remote BUCKET=gs://bucket/path, then dvc push
	@case "$(BUCKET)" in gs://?*) ;; *) echo "BUCKET must look like gs://bucket/path, got '$(BUCKET)'" >&2; exit 1;; esac
	dvc remote add --force --default bucket "$(BUCKET)"
	@echo "DVC now uses $(BUCKET). Log in with: gcloud auth application-default login; then dvc push, dvc pull. Commit .dvc/config to share it."

train: repository setup ## the whole pipeline on the source you name, then the table and reports/compare.html
	@$(raw_there)
	@$(PIPELINE) report export $(OPTIONS)
	@python -c 'from bcss_nb.evaluation.comparison_tables import print_comparison; print_comparison()'

report: repository setup ## the studies of robustness and leakage as well, then the report again
	@$(raw_there)
	@$(PIPELINE) robustness leakage $(OPTIONS)
	@$(PIPELINE) --force --single-item report $(OPTIONS)

sweep: repository setup ## queue one experiment for each value of GRID='train.lr=0.0005,0.0015', run them, show the table
	@$(PIPELINE) --queue $(foreach g,$(GRID),-S '$(g)') compare $(OPTIONS) GROUP='$(or $(GROUP),sweep)'
	dvc queue start
	@while dvc queue status | grep -Eq 'Queued|Running'; do sleep 3; done
	@python -c 'from bcss_nb.evaluation.comparison_tables import print_sweep; print_sweep("$(GRID)", "$(or $(GROUP),sweep)")'
	@if dvc queue status | grep -q Failed; then dvc queue status; echo "Some failed: dvc queue logs NAME says why, dvc queue remove --failed forgets them" >&2; exit 1; fi

profile: setup ## where the time of a training step goes: MODEL=unet BUDGET=smoke; table and picture in reports/
	python -m papermill nbs/studies/profiling.ipynb reports/profiling.ipynb -k python3 --no-progress-bar -r model '$(MODEL)' -r reports reports
	@python -c 'import pandas; print(pandas.read_csv("reports/profile_$(MODEL).csv").head(15).to_string(index=False))'

model: setup ## export the preferred model to exports/bcss: ONNX, 8 bits, MONAI Bundle, compared with the original
	dvc repro export
	@python -c 'import pandas; print(pandas.read_csv("reports/export.csv").to_string(index=False))'

serve: setup ## the exported model on http://localhost:8080: web page, API, metrics
	@[ -e exports/bcss/model.json ] || $(MAKE) --no-print-directory model
	bcss serve --model exports/bcss

STORE ?= store
HOURS ?= 24
monitor: setup ## report on what the service stored: STORE=<folder that BCSS_STORE named> HOURS=24
	python -m papermill nbs/09_monitor.ipynb reports/09_monitor.ipynb -k python3 --no-progress-bar -r store '$(STORE)' -r model exports/bcss -p hours $(HOURS) -r reports reports
	@cat reports/monitor.json; echo "reports/monitor.html holds every distribution"

ENGINE ?= docker
BASE ?=
CACHE ?= $(HOME)/.cache/bcss_nb
GPUS ?= $(if $(shell command -v nvidia-smi),--gpus all)
INSIDE = mkdir -p '$(CACHE)' && $(ENGINE) run --rm $(GPUS) --ipc=host -u $$(id -u):$$(id -g) -e HOME=/tmp -e XDG_CACHE_HOME=/cache -e HF_HOME=/cache/huggingface -e WANDB_API_KEY \
  -v '$(CURDIR)':/home/bcss/bcss_nb -v '$(CACHE)':/cache
image-serve: ## the container image of the service: ENGINE=docker|podman|buildah BASE=image
	@[ -e exports/bcss/reference.json ] || $(MAKE) --no-print-directory model
	$(ENGINE) build -f Dockerfile.serve $(if $(BASE),--build-arg BASE='$(BASE)') -t bcss-serve .

image-cuda: ## the container image of the pipeline: ENGINE=docker|podman|buildah BASE=image
	$(ENGINE) build -f Dockerfile.cuda $(if $(BASE),--build-arg BASE='$(BASE)') -t bcss-train .

image-check: ## build both images without a container engine and run them (root, buildah, debootstrap; 25 minutes)
	set -o pipefail; deploy/image_check.sh | tee reports/bench/images_cpu.txt

docker-repro: ## this tree's pipeline inside the image, on the GPUs there are, as you; GPUS= for none
	$(INSIDE) bcss-train dvc repro

docker-lab: ## JupyterLab inside the image, on http://localhost:8888
	$(INSIDE) -it -p 127.0.0.1:8888:8888 bcss-train jupyter lab --ip 0.0.0.0 --no-browser

# DVC keeps its experiments in Git: said before anything is installed
repository:
	@command -v git >/dev/null || { echo "Git is needed, which keeps the experiments of DVC: install it (apt install git, or https://git-scm.com)." >&2; exit 1; }
	@said=$$(git ls-files --error-unmatch dvc.yaml 2>&1) || { case "$$said" in \
	  *dubious*) printf 'Git does not trust this folder, which belongs to another user. If you do, type:\n\n  git config --global --add safe.directory %s\n\nand run the same command again.\n' $(call q,$(CURDIR));; \
	  *) printf 'This folder is no Git repository of its own (a ZIP download?), and DVC keeps its experiments in one. Type:\n\n  git init -q && git add -A && git -c user.name=bcss_nb -c user.email=bcss_nb@localhost commit -qm "As downloaded"\n\nand run the same command again.\n';; \
	  esac >&2; exit 1; }

define source_known
case "$(SOURCE)" in sample|kaggle224|kaggle512|roi|auto) ;; *) echo "Unknown source $(SOURCE): choose one of sample, kaggle224, kaggle512, roi, auto." >&2; exit 1;; esac
endef
define raw_there
$(source_known); if [ "$(SOURCE)" != sample ] && [ ! -e $(call q,$(RAW_TEXT)) ]; then \
  printf 'The raw folder %s does not exist: give RAW=<folder or zip that holds the release>, or fetch it with make data SOURCE=$(SOURCE) (README, section Data).\n' $(call q,$(RAW_TEXT)) >&2; exit 1; fi
endef

docs: setup-dev ## the documentation site in _docs/, strict; then links, pages and accessibility are checked (in Chromium, where there is one)
	python tools/docs_build.py --strict
	python tools/docs_check.py

docs-serve: setup-dev ## the site on http://localhost:8000, rebuilt when a file changes
	python tools/docs_build.py --serve

export: setup-dev ## notebooks -> module, outputs cleaned of noise
	nbdev_export
	nbdev_clean

test: check lint ## every check: tree in step, ruff, notebooks, pytest with coverage
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --do_print
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal --cov --cov-report=term

bench: setup-dev ## speed of data, training, engines, prediction and service; each prints a table and ends with one line of JSON (bench/recipe.py takes an hour)
	for b in data train gpu infer predict serve; do python bench/$$b.py || exit 1; done

check: setup-dev ## is the module what the notebooks say, and are they clean?
	@python tools/in_step.py

lint: setup-dev ## ruff over modules, tests and notebooks
	ruff check .

readme: setup-dev ## README.md from nbs/index.ipynb
	python tools/in_step.py --write-readme

lock: setup-dev ## pin the whole environment again from settings.ini
	python tools/lock.py

clean: ## remove what runs made (not the environment, not raw data); files of other people in these folders stay
	@$(PYTHON) -m bcss_nb.core.folders
