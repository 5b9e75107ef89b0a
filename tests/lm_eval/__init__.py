"""Tests of the harness's model, in an environment of its own: `make test-lm-eval`."""
