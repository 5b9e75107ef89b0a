"""Whatever answers: an engine of this process, a server, a script."""

from __future__ import annotations
