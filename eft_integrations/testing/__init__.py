"""For tests: of applications that use this package (docs/testing.md), and of classes that adapt a model to a framework.

    from eft_integrations.testing import forbid_engines, scripted

    forbid_engines()                        # in conftest.py: nothing is loaded by name
    with scripted(["Paris."]) as backend:   # every model of the application answers from this script
        ...

    from eft_integrations.testing.llama_index_suite import LlamaIndexLLMSuite

The suite needs pytest and the framework, nothing else of this project. Nothing else here needs pytest; with it there are fixtures
and an option in `eft_integrations.testing.plugin`.
"""

from __future__ import annotations

import sys

from eft_integrations.backends.replies import AUTO, Broken, Gate, Gated, Reply
from eft_integrations.backends.scripted import Recorded, ScriptedBackend, ScriptOverError
from eft_integrations.testing.engines import allow_engines, forbid_engines
from eft_integrations.testing.scripting import scripted, tool_call

__all__ = [
    "AUTO",
    "Broken",
    "Gate",
    "Gated",
    "Recorded",
    "Reply",
    "ScriptOverError",
    "ScriptedBackend",
    "allow_engines",
    "forbid_engines",
    "scripted",
    "tool_call",
]

if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite("eft_integrations.testing.llama_index_suite")
