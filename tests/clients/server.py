"""The server that the tests of other environments talk to: run it with the project's own environment; it prints its address.

`trio` is a small trio that learned a few answers, `tools` behaves like a model that uses its tools.
"""

from __future__ import annotations

import sys

from eft_integrations.backends.pool import backend_of
from tests.integrations.server.serving import running
from tests.integrations.server.tool_user import ToolUser
from tests.integrations.trained_trio import trained_engine

if __name__ == "__main__":
    with running({"trio": backend_of(trained_engine()), "tools": ToolUser()}) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        sys.stdin.read()  # until the tests are over
