"""Write the trio that answers LangChain's suites into a folder, for tests outside this repository's environment.

python -m tests.packages.trio FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.integrations.trained_trio import trained_trio

if __name__ == "__main__":
    trained_trio().save(Path(sys.argv[1]))
