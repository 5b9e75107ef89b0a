"""Version, licence and requirement come from the core, where it is around this folder; a source distribution brings them."""

import runpy
from pathlib import Path

from setuptools import setup

FOLDER = Path(__file__).parent

if (core := FOLDER.parent / "core_fields.py").is_file():
    runpy.run_path(str(core))["write_core_fields"](FOLDER, extra="langchain")
setup()
