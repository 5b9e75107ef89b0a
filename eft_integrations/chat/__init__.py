"""What a chat is, how a request becomes a prompt and a grammar, and how a text becomes an answer."""

from __future__ import annotations
