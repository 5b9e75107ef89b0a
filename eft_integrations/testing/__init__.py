"""Test suites for classes that adapt a model to a framework, to be run against any such class.

    from eft_integrations.testing.llama_index_suite import LlamaIndexLLMSuite

They need pytest and the framework, nothing else of this project.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("eft_integrations.testing.llama_index_suite")
