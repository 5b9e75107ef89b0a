"""What JSON schemas say, and which of it a grammar can hold; `chat.schema` and `chat.schema_check` are the doors."""

from __future__ import annotations
