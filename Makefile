# Two commands do everything from nothing: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
ARGS ?=
# A process for each core, up to four (each takes 2 GB): whoever is done first helps the others.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

export HF_HUB_OFFLINE = 1

.PHONY: demo docs test test-slow test-versions test-gpu bench gallery optimizers check format clean

demo: $(READY)  ## Fine-tune a real model with one recipe in three runtimes; results in runs/demo
	$(BIN)/python examples/docstrings/compare.py $(ARGS)

docs: $(READY)  ## The pages of docs as a site in runs/docs, with all that is made from the code
	$(BIN)/python -m mkdocs build --strict $(ARGS)

test: $(READY) check  ## Lint, types, import directions, and every test that is not slow
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(READY)  ## The tests that take minutes
	$(PYTEST) -m slow $(ARGS)

# The oldest and the newest releases that docs/versions.md names, each in an environment of its own, by any
# Python (OLDEST_PYTHON, NEWEST_PYTHON). Without an index of builds for the CPU, torch brings CUDA along.
OLDEST_PYTHON ?= $(PYTHON)
NEWEST_PYTHON ?= $(PYTHON)
OF_LIGHTNING := tests/lightning tests/callbacks/test_lightning.py
OF_VERSIONS := $(OF_LIGHTNING) tests/huggingface tests/callbacks tests/recipe/parameters/code
ENDS := oldest newest

test-versions: $(ENDS:%=test-%)  ## The adapters, with the oldest and the newest releases

# What old and new releases warn of about each other is theirs.
$(ENDS:%=test-%): test-%: $(VENV)-%/.installed
	$(VENV)-$*/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal -W default -m "not slow" \
		$(OF_VERSIONS) $(ARGS)
	OPTIMPLUG_TEST_LIGHTNING=pytorch_lightning $(VENV)-$*/bin/python -m pytest -n auto --maxprocesses 4 \
		--dist worksteal -W default -m "not slow" $(OF_LIGHTNING) $(ARGS)

# In the environment that is there: a machine with a GPU has a torch of its own, which fits it.
test-gpu:  ## On a machine with a GPU: kernels against the loop, no waiting, captured steps
	$(PYTHON) -m pytest -n auto --maxprocesses 8 --dist worksteal -W default -m "not slow" \
		tests/optim/test_cuda.py tests/optim/executions/triton_*cases.py $(ARGS)

bench: $(READY)  ## Our speed against torch's, as ratios; results in runs/bench
	$(BIN)/python benchmarks/schedulers.py $(ARGS)
	$(BIN)/python benchmarks/optimizers.py $(ARGS)
	$(BIN)/python benchmarks/bandwidth.py
	$(BIN)/python benchmarks/storage.py

optimizers: $(READY)  ## The tables of docs/optimizers.md
	$(BIN)/python docs/optimizers.py

gallery: $(READY)  ## A picture of every scheduler, in docs/gallery
	$(BIN)/python docs/gallery.py $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Let ruff write the style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(ENDS:%=$(VENV)-%) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The environment, made once; made again when what it installs has changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[all,examples,dev,docs]"
# Alone: timm would bring a torchvision built for CUDA, which does not import beside this torch, and
# of the others the tests need a class or two.
	$(BIN)/python -m pip install -c constraints.txt --no-deps timm diffusers opacus pytorch_optimizer trl
	touch $@

$(VENV)-oldest/.installed: CREATE = $(OLDEST_PYTHON) -m venv
$(VENV)-newest/.installed: CREATE = $(NEWEST_PYTHON) -m venv
$(ENDS:%=$(VENV)-%/.installed): $(VENV)-%/.installed: pyproject.toml constraints/%.txt
	$(CREATE) $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install -c constraints/$*.txt -e ".[all,examples,test]"
	$(VENV)-$*/bin/python -m pip install -c constraints/$*.txt --no-deps timm trl
	touch $@
