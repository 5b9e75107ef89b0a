"""The kernels, compiled on this machine for its processor and kept between processes."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"

FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")
"""Nothing that lets a compiler change the order of sums."""

COMPILERS = ("cc", "gcc", "clang")
COMPILING_TIMEOUT_S = 300.0


def cache_folder() -> Path:
    """Where what is made once per machine is kept: `EFT_CACHE_DIR`, or `eft-engine` in the user's cache folder."""
    own = os.environ.get("EFT_CACHE_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eft-engine"


@functools.cache
def compiled() -> Path | None:
    """The compiled kernels' library; None, with a line in the log, where there can be none. `EFT_NATIVE=0` switches them off."""
    if os.environ.get("EFT_NATIVE") == "0":
        return None
    if os.name != "posix":
        logger.info("networks are computed by torch: kernels of our own are for Linux and macOS")
        return None
    compiler = _compiler()
    if compiler is None:
        logger.info(
            "networks are computed by torch: no C compiler was found (%s); with one, single requests are faster",
            ", ".join(COMPILERS),
        )
        return None
    try:
        return _compile(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr.strip()[-500:] if isinstance(error, subprocess.CalledProcessError) else str(error)
        logger.warning("networks are computed by torch: %s could not compile the kernels: %s", compiler, detail)
        return None


def _compiler() -> str | None:
    wanted = os.environ.get("CC")
    return next((path for name in (wanted, *COMPILERS) if name and (path := shutil.which(name))), None)


def _compile(compiler: str) -> Path:
    folder = cache_folder() / "kernels"
    library = folder / f"{_key(compiler)}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise PermissionError(f"others may write to {folder}; remove it, or name a folder of your own by EFT_CACHE_DIR")
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own) / library.name
        command = [compiler, *FLAGS, str(SOURCES / "pass.c"), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILING_TIMEOUT_S)
        made.replace(library)  # whole or not at all, however many processes compile
    logger.info("compiled the kernels for this processor: %s", library)
    return library


def _key(compiler: str) -> str:
    """Of everything that the library is made of."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    parts = [compiler, version, processor(), *FLAGS]
    parts += [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@functools.cache
def processor() -> str:
    """What this machine's processor is and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = {"model name", "flags", "Features", "CPU part", "model", "stepping"}
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip(" :") in wanted}))
