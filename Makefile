# make run            the notebooks, headless, and their gallery in site/index.html
# make run ARGS='--preset coco --data DIR --steps 1000'
# make test           ruff and the tests that take seconds;  make test-all: the slow ones as well
# make ablations      the paper's ablations on toys (hours, with the models that they start from)
# make lab            JupyterLab;  make bench: timings as ratios;  make lock: pin the dependencies anew (needs uv)
# make clean          delete runs/, site/ and caches; data stays

PYTHON ?= python3
IN := .venv/bin/python
STAMP := .venv/.installed
ARGS ?=

# what JupyterLab, papermill and VS Code add to a notebook that is run and saved, beside what nbstripout knows
LANGUAGE := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version
ADDED := $(LANGUAGE:%=metadata.language_info.%) $(foreach place,metadata cell.metadata,$(place).papermill $(place).vscode) \
	cell.metadata.jp-MarkdownHeadingCollapsed

.PHONY: run test test-all ablations lab bench clean lock filter
.DEFAULT_GOAL := run

$(STAMP): pyproject.toml requirements.lock
	@test -x $(IN) || $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dias_lab needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(IN) || $(PYTHON) -m venv .venv
	@echo "installing the pinned dependencies into .venv (minutes the first time)"
	@$(IN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(IN) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@$(MAKE) --no-print-directory filter
	@touch $(STAMP)

# git takes notebooks as they were before they ran (.gitattributes); outside a checkout there is nothing to do
filter:
	@test ! -e .git || git config filter.nbstripout.clean '.venv/bin/nbstripout --keep-id' || true
	@test ! -e .git || git config filter.nbstripout.extrakeys '$(ADDED)' || true

run: $(STAMP)
	@$(IN) -m dias_lab run $(ARGS)

test: $(STAMP)
	@$(IN) -m ruff check
	@OMP_NUM_THREADS=1 $(IN) -m pytest -q -n 2 --dist loadgroup -m "not slow" $(ARGS)

test-all: $(STAMP)
	@$(IN) -m ruff check
	@OMP_NUM_THREADS=1 $(IN) -m pytest -q -n 2 --dist loadgroup $(ARGS)

# the ablations on toys: the models that they start from (a finished one is only read), then the two grids, and 05
ABLATIONS := runs/ablations

ablations: $(STAMP)
	@test -e data/scenes/train.lmdb || $(IN) -m dias_lab convert scenes --train 14000 --out data/scenes
	@printf '%s\n' 42 43 44 | OMP_NUM_THREADS=1 xargs -P 2 -I SEED \
		$(IN) -m dias_lab train --preset scenes --seed SEED --run-dir runs/scenes-SEED
	@$(IN) -m dias_lab grid start notebooks/grids/ablations.toml --out $(ABLATIONS) --workers 2 $(ARGS); state=$$?; \
		$(IN) -m dias_lab grid start notebooks/grids/ablations_start.toml --out $(ABLATIONS)-start --workers 2 $(ARGS) || state=$$?; \
		$(IN) -m dias_lab grid table $(ABLATIONS) && $(IN) -m dias_lab grid table $(ABLATIONS)-start && \
		$(IN) -m dias_lab run --only 05 --ablation-dir $(ABLATIONS) && exit $$state

lab: $(STAMP)
	@$(IN) -m jupyterlab notebooks $(ARGS)

bench: $(STAMP)
	@$(IN) -m benchmarks $(ARGS)

clean:
	@rm -rf runs site .pytest_cache .ruff_cache build dist
	@find dias_lab tests benchmarks notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true
	@echo "deleted runs/, site/ and the caches. What stays (delete it by hand):"
	@du -sh data .venv 2>/dev/null || true

lock:
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra test --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock
