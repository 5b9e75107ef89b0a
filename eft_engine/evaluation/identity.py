"""What decides an answer besides question and setting: the models' files, how they are computed, how tokens are drawn."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eft_engine.config import CompositionOptions, EngineConfig, MemberConfig, Pair, SamplingParams
from eft_engine.weights import as_json

DECIDING_FILES = (
    "*.safetensors",
    "*.gguf",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""Of a model's folder; what else lies there (curves, checkpoints, reports) decides nothing."""

ONLY_SPEED = frozenset(
    {
        "llama_cpp",
        "max_num_seqs",
        "prefill_chunk_len",
        "max_warm_prefixes",
        "max_kv_cache_bytes",
        "max_queued_requests",
        "speculation",
        "deterministic",
        "draft_history_tokens",
        "draft_quantization",
        "cuda_graphs",
        "tensor_parallel_timeout_s",
        "self_check",
        "show_progress",
    }
)
"""Options of an engine that change how soon an answer is there, and no token of it."""

CACHE_TYPES = ("cache_type_k", "cache_type_v", "flash_attention")

WHOLE_BYTES = 1 << 24
"""Files up to this size are read whole; of larger ones so many parts of this length are."""
PART_BYTES = 1 << 16
NUM_PARTS = 256


def facts_of(
    base: MemberConfig,
    pairs: Mapping[str, Pair],
    config: EngineConfig,
    *,
    sampling: SamplingParams,
    composition: CompositionOptions,
) -> dict[str, Any]:
    """All of that by name, as JSON. Of models in folders and files the content counts, wherever they lie; of others the name."""
    facts: dict[str, Any] = {"eft-engine": importlib.metadata.version("eft-engine")}
    members = {"base": base}
    for name, pair in pairs.items():
        facts[f"{name}.weight"] = as_json(pair.weight)
        members[f"{name}.tuned"] = pair.tuned
        if pair.reference is not None:
            members[f"{name}.reference"] = pair.reference
    for name, member in members.items():
        facts[name] = _member(member)
    facts |= {f"engine.{name}": value for name, value in _json(config).items() if name not in ONLY_SPEED}
    llama_cpp = config.llama_cpp.model_dump(mode="json")
    facts |= {f"llama_cpp.{name}": llama_cpp[name] for name in CACHE_TYPES}
    facts |= {f"sampling.{name}": value for name, value in _json(sampling).items()}
    return facts | {f"composition.{name}": value for name, value in _json(composition).items() if name != "member"}


def _json(options: Any) -> dict[str, Any]:
    told: dict[str, Any] = options.model_dump(mode="json")
    return told


def _member(member: MemberConfig) -> dict[str, Any]:
    fields = member.model_dump(mode="json", exclude_defaults=True, exclude={"quantization_config", "llama_cpp"})
    if member.quantization_config is not None:
        fields["quantization_config"] = repr(member.quantization_config)
    for place in ("source", "adapter", "tokenizer"):
        where = getattr(member, place)
        if where is not None and Path(where).exists():
            fields[f"{place} content"] = digest(Path(where), only=member.gguf_file if place == "source" else None)
            fields[place] = Path(where).name  # a folder that was moved is the same
    return fields


def digest(path: Path, *, only: str | None = None) -> str:
    """Of a model's file, or of those in its folder that decide what it says; of large ones sizes and parts all over the file."""
    found = hashlib.sha256()
    for name, file in _files(path, only):
        found.update(f"{name}\0{file.stat().st_size}\0".encode())
        for part in _parts(file):
            found.update(part)
    return found.hexdigest()[:16]


def _files(path: Path, only: str | None) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
        return
    found = {file for pattern in DECIDING_FILES for file in path.glob(pattern) if file.is_file()}
    for file in sorted(found):
        if only is None or file.suffix != ".gguf" or file.name == only:
            yield file.name, file


def _parts(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= WHOLE_BYTES:
            yield opened.read()
            return
        for number in range(NUM_PARTS):
            opened.seek(number * (size - PART_BYTES) // (NUM_PARTS - 1))
            yield opened.read(PART_BYTES)
