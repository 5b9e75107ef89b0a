"""Adapters that put the engine behind the interfaces of other frameworks.

    from eft_integrations.langchain import EFTChatModel

Importing this package imports neither torch nor any framework; each adapter imports its own.
"""

from __future__ import annotations

from eft_integrations.weights import weights

__all__ = ["weights"]
