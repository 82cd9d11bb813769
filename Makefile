# make reproduce   set up .venv, run the zero-shot notebooks on the mini world, and compare with the accepted rows
# make reproduce-all  the same for every table and figure of the mini world, trainings included (JOBS=2 at a time)
# make accept      run all of them and take their rows, figures and README over, on purpose
# make rehearse  every paper notebook at scale paper, and what answers the papers' command lines, short, on small worlds in the true formats
# make docs        the HTML site in runs/html, read without a network;  make links checks every link
# make mutate      plant the faults of tests/mutations one by one; each must be noticed (trainings apart: tools/mutate.py --all)
# make benchmark   ratios of small runs, as JSON in runs/benchmarks; benchmarks/gpu.py is for a card
# make soak        look for what breaks, MINUTES=20 long: kills, corruptions, runners at once, hostile archives, failing calls
# make test        set up .venv, check that notebooks and package agree, run every notebook and every test, offline, CPU only
# PYTHON=...       another Python 3.11 to 3.13;  VENV=...  another place for the environment

SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
MINUTES ?= 20
## what people write; nbdev writes oodnb
WRITTEN := nbs tests benchmarks tools setup.py
## long ones first, and never two beside each other that wait for the same training; features of the test sets are made by the first
PAPERS := zeroshot_imagenet hftt_theory clipn_readme locoop_imagenet toe_imagenet clipn_ablation locoop_sensitivity forget_baselines toe_criteria locoop_regions forget_attacks toe_noise clipn_cifar toe_real_and_virtual forget_loss_terms clipn_prompts forget_preserve_names \
    clipn_negation clipn_baselines forget_meets_ood hftt_quality hftt_sensitivity hftt_backbones more_detectors forget_target forget_multi forget_single hftt_text_source hftt_imagenet hftt_hateful toe_density hftt_embeddings forget_features hftt_medical
OFFLINE := env -u OODNB_DATA OODNB_HOME="$(CURDIR)/runs/.test-home" OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 MPLBACKEND=agg PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup hooks reproduce reproduce-all accept readme test rehearse soak mutate benchmark check lint format export docs links clean distclean

help:
	@sed -n 's/^# //p' Makefile
	@echo "also: setup hooks check lint format export readme docs links clean distclean"

$(STAMP): settings.ini setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.11 to 3.13; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[notebooks,dev,blip,scale,cloud,docs]'
	@touch $@

setup: $(STAMP) hooks

hooks:
	@git config core.hooksPath .githooks 2>/dev/null || echo "not a git checkout: no hooks to set"

reproduce: $(STAMP)
	$(BIN)/oodnb run zeroshot_imagenet
	$(BIN)/oodnb table zeroshot_imagenet

reproduce-all: $(STAMP)
	env OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/oodnb run $(PAPERS) scoreboard --jobs $(JOBS); told=$$?; $(BIN)/oodnb report --to runs/report.html && exit $$told

accept: $(STAMP)
	env OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/oodnb run $(PAPERS) --accept --jobs $(JOBS)
	$(BIN)/oodnb run scoreboard --accept
	$(MAKE) --no-print-directory readme

readme: $(STAMP)
	mkdir -p runs/readme
	env PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter nbconvert --execute --to markdown --output-dir runs/readme --output README nbs/index.ipynb
	sed -e 's|](\.\./|](|g' -e 's|src="\.\./|src="|g' runs/readme/README.md > README.md

test: $(STAMP)
	$(BIN)/python tools/check.py
	$(BIN)/mypy
	$(OFFLINE) $(BIN)/python tools/lessons.py --jobs 2
	$(OFFLINE) $(BIN)/python -m pytest -q -rfEs -n 2 --dist loadfile

soak: $(STAMP)
	$(OFFLINE) $(BIN)/python tools/soak.py --minutes $(MINUTES)

rehearse: $(STAMP)
	rm -rf runs/rehearsal
	$(OFFLINE) $(BIN)/oodnb rehearse --to runs/rehearsal --jobs $(JOBS)
	$(OFFLINE) $(BIN)/oodnb rehearse --lines --to runs/rehearsal --jobs $(JOBS)
	rm -rf runs/rehearsal

benchmark: $(STAMP)
	$(OFFLINE) $(BIN)/python benchmarks/plain_user.py --backbone mini --images 100 --starts 0 --json runs/benchmarks/plain_user_mini.json
	$(OFFLINE) $(BIN)/python benchmarks/tokens.py --texts 20000 --json runs/benchmarks/tokens.json
	$(OFFLINE) $(BIN)/python benchmarks/operations.py --small --json runs/benchmarks/operations.json
	$(OFFLINE) $(BIN)/python benchmarks/gpu.py --device cpu --tiny --csv runs/benchmarks/gpu_rehearsal.csv

mutate: $(STAMP)
	$(BIN)/python tools/mutate.py --jobs $(JOBS)

check: $(STAMP)
	$(BIN)/python tools/check.py
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format $(WRITTEN)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet --output-format concise $(WRITTEN)
	$(BIN)/ruff check --isolated --select F401,F821,F841 oodnb
	$(BIN)/mypy

export: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev-export

docs: $(STAMP)
	@$(BIN)/python -c 'import latex2mathml' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python tools/docs runs/html
	$(BIN)/python tools/links.py runs/html

links: $(STAMP)
	$(BIN)/python tools/links.py $(wildcard runs/html)

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache _proc _docs runs/readme runs/html
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
