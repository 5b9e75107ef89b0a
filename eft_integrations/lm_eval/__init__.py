"""Trios as a model of lm-evaluation-harness, called `eft` there (docs/lm_eval.md). `register` tells the harness of it."""

from __future__ import annotations

NAME = "eft"


def register() -> None:
    """Let the harness know the model `eft`. May be repeated. The harness finds no models of other distributions by itself.

    Raises:
        ModelNotFoundError: it is not installed.
    """
    from eft_engine.errors import ModelNotFoundError

    try:
        from lm_eval.api.registry import model_registry
        from lm_eval.models import MODEL_MAPPING  # the import registers these
    except ImportError as error:
        raise ModelNotFoundError(
            f"lm-evaluation-harness is not installed ({error}); pip install 'eft-engine[lm-eval]'"
        ) from error
    if NAME not in MODEL_MAPPING and NAME not in model_registry:
        model_registry.register(NAME, target="eft_integrations.lm_eval.model:TrioLM")
