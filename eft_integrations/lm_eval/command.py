"""`eft lm-eval ...`: the harness's own command line, which knows the model `eft`."""

from __future__ import annotations

import sys

from eft_integrations.lm_eval import register


def lm_eval() -> None:
    """Run lm-evaluation-harness with `--model eft`; all arguments are its own (docs/lm_eval.md)."""
    register()
    from lm_eval.__main__ import cli_evaluate

    place = 2 if sys.argv[1:2] == ["lm-eval"] else 1
    sys.argv = ["lm_eval", *sys.argv[place:]]
    cli_evaluate()


lm_eval.context_settings = {  # type: ignore[attr-defined]
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
