"""`python -m eft_integrations.lm_eval ...`: the harness's own command line, which knows the model `eft`."""

from eft_integrations.lm_eval.command import lm_eval

lm_eval()
