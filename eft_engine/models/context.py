"""How many tokens a trio has room for, from configurations alone: no tokenizer is read, no network built, no weight opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from eft_engine.config import EngineConfig, MemberConfig, Pair
from eft_engine.models.skeleton import context_len_of_config, load_config
from eft_engine.models.sources import ResolvedMember, is_adapter, resolve_source


def context_len_of(
    base: str | MemberConfig, pairs: Mapping[str, Pair] | None = None, config: EngineConfig | None = None
) -> int:
    """What `Engine.context_len` will be once these are loaded: most tokens of prompt and output together.

    Reads one small file per model, or the header of a .gguf file; of a hub, too, but that a .gguf file is fetched as a whole there,
    as loading would.

    Args:
        base, pairs, config: as for `Engine.load`.

    Raises:
        LoadError: a member is missing, unreadable, or of a family that nobody here knows.
    """
    config = config or EngineConfig()
    limits = [_network_context_len(role, member, config) for role, member in _networks(base, pairs or {})]
    return min([*limits, config.max_context_len or limits[0]])


def _networks(base: str | MemberConfig, pairs: Mapping[str, Pair]) -> Iterator[tuple[str, ResolvedMember]]:
    """Members by role, but those that are an adapter on a network that is here already."""
    yield "base", _without_adapter(MemberConfig(source=base) if isinstance(base, str) else base, "base")
    for name, pair in pairs.items():
        if pair.reference is not None:
            yield f"{name}.reference", _without_adapter(pair.reference, f"{name}.reference")
        if pair.tuned.adapter is not None or not is_adapter(pair.tuned):
            yield f"{name}.tuned", _without_adapter(pair.tuned, f"{name}.tuned")


def _without_adapter(member: MemberConfig, role: str) -> ResolvedMember:
    return ResolvedMember(member, resolve_source(member, role=role))


def _network_context_len(role: str, member: ResolvedMember, config: EngineConfig) -> int:
    own, source = member.config, member.source
    if source.gguf_file is not None:
        return _gguf_context_len(role, member, config)
    return context_len_of_config(
        load_config(
            source.location,
            member=role,
            source=str(source),
            revision=own.revision,
            trust_remote_code=own.trust_remote_code,
        )
    )


def _gguf_context_len(role: str, member: ResolvedMember, config: EngineConfig) -> int:
    # Imported here because it takes seconds, and folders, which an event loop may ask for, need none of it.
    from eft_engine.models.gguf_weights import config_from_gguf
    from eft_engine.models.network_plans import GGUFReader, choose_runtime

    gguf = GGUFReader().read(role, member)
    assert gguf is not None, "a .gguf file"
    runtime, _ = choose_runtime(role, member, gguf, config)
    return gguf.context_len if runtime == "llama.cpp" else context_len_of_config(config_from_gguf(gguf, member=role))
