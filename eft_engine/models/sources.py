"""What a member's `source` string stands for: a folder, a GGUF file, a hub id, or an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from transformers.utils import find_adapter_config_file

from eft_engine.config import MemberConfig, Term, TunedPair
from eft_engine.errors import (
    CorruptWeightsError,
    InvalidOptionError,
    ModelNotFoundError,
    UnsafeWeightsError,
    UnsupportedAdapterError,
)
from eft_engine.models.adapter_tokenizer import WITH_AN_ADAPTER
from eft_engine.models.gguf_file import read_gguf, split_paths

PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Source:
    """Where a network comes from, as transformers wants it: `location` is a folder or a hub id."""

    location: str
    gguf_file: str | None = None

    def __str__(self) -> str:
        return f"{self.location}/{self.gguf_file}" if self.gguf_file else self.location


@dataclass(frozen=True)
class ResolvedMember:
    """A member's network and, where it has one, its adapter: a PEFT folder, or a .gguf file.

    `tokenizer` is what the member itself names; without one, that of the adapter's folder goes before `config.tokenizer`, which
    may be its reference's.
    """

    config: MemberConfig
    source: Source
    adapter: Path | None = None
    tokenizer: str | None = None


def resolve_base(member: MemberConfig) -> ResolvedMember:
    """Resolve the base. Errors: as `resolve_source` and `resolve_adapter`."""
    return _resolve_member(member, role="base")


def resolve_pair(name: str, pair: TunedPair) -> tuple[ResolvedMember, ResolvedMember]:
    """The tuned and the reference member of a pair. A tuned source that is an adapter sits on the reference's network, held as
    the reference is but for the options that are given with it.

    Raises:
        UnsupportedAdapterError: `tuned` is an adapter and the reference has one of its own already.
    """
    reference = _resolve_member(pair.reference, role=f"{name}.reference")
    if pair.tuned.adapter is None and is_adapter(pair.tuned):
        if reference.adapter is not None:
            raise UnsupportedAdapterError(
                f"{name}: tuned and reference are both adapters, so it is open what the tuned one sits on; "
                "write tuned=MemberConfig(source=<model>, adapter=<adapter>)",
                member=f"{name}.tuned",
                source=pair.tuned.source,
            )
        adapter = resolve_adapter(pair.tuned.source, revision=pair.tuned.revision, role=f"{name}.tuned")
        given = pair.tuned.model_fields_set - {"source", "revision"}
        config = reference.config.model_copy(update={option: getattr(pair.tuned, option) for option in given})
        tuned = ResolvedMember(config, reference.source, adapter, pair.tuned.tokenizer)
        return tuned, reference
    return _resolve_member(pair.tuned, role=f"{name}.tuned"), reference


def resolve_term(name: str, term: Term) -> ResolvedMember:
    """Where the model of a term comes from.

    Raises:
        LoadError: as for `resolve_source`.
        UnsupportedAdapterError: it is an adapter, and there is no reference that it would sit on.
    """
    if term.model.adapter is None and is_adapter(term.model):
        raise UnsupportedAdapterError(
            f"{name}: the term is an adapter and has no reference that it would sit on; write "
            "Term(MemberConfig(source=<model>, adapter=<adapter>))",
            member=f"{name}.tuned",
            source=term.model.source,
        )
    return _resolve_member(term.model, role=f"{name}.tuned")


def _resolve_member(member: MemberConfig, *, role: str) -> ResolvedMember:
    adapter = None
    if member.adapter is not None:
        adapter = resolve_adapter(member.adapter, revision=None, role=role)
    elif member.merge:
        raise InvalidOptionError(
            f"{role}: merge=True merges an adapter, and {member.source} has none; name one with adapter=...",
            option="merge",
            value=True,
        )
    return ResolvedMember(member, resolve_source(member, role=role), adapter, member.tokenizer)


def resolve_source(member: MemberConfig, *, role: str) -> Source:
    """Folder, GGUF file or hub id.

    Raises:
        ModelNotFoundError: a local path that does not exist, or a folder without a model.
        UnsafeWeightsError: a folder whose weights are only pickles.
    """
    text = member.source
    path = Path(text).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Source(str(path.parent), path.name)
    if not path.is_dir():
        on_hub = _gguf_on_hub(text)
        if on_hub is not None and not path.exists():
            return on_hub
        if path.exists() or _looks_like_path(text):
            raise ModelNotFoundError(
                f"{role}: no model folder and no .gguf file at {text!r}; give an existing folder, a .gguf file, or a "
                "hub id such as 'organisation/model'",
                member=role,
                source=text,
            )
        return Source(text, member.gguf_file)
    if member.gguf_file is not None:
        if not (path / member.gguf_file).is_file():
            raise ModelNotFoundError(f"{role}: {path} has no file {member.gguf_file!r}", member=role, source=text)
        return Source(str(path), member.gguf_file)
    is_adapter_alone = (path / "adapter_config.json").is_file() and not _has_model(path)
    if (path / "config.json").is_file() and not is_adapter_alone:
        _check_weight_files(path, role=role)
        return Source(str(path))
    # The parts of a file that is split are one file, called by the first.
    ggufs = sorted({split_paths(file)[0].name for file in path.glob("*.gguf")})
    if len(ggufs) == 1:
        return Source(str(path), ggufs[0])
    if ggufs:
        reason = f"has several .gguf files ({', '.join(ggufs)}); choose one with MemberConfig(gguf_file=...)"
    elif (path / "adapter_config.json").is_file():
        reason = "is an adapter; say what it sits on with MemberConfig(source=<model>, adapter=<this folder>)"
    else:
        reason = "has neither a config.json nor a .gguf file"
    raise ModelNotFoundError(f"{role}: the folder {text!r} {reason}", member=role, source=text)


def _gguf_on_hub(text: str) -> Source | None:
    """`organisation/model/file.gguf`: a file of a hub repository, perhaps in a folder of it.

    >>> _gguf_on_hub("organisation/model-GGUF/model-q4_k_m.gguf")
    Source(location='organisation/model-GGUF', gguf_file='model-q4_k_m.gguf')
    >>> _gguf_on_hub("./folder/model.gguf"), _gguf_on_hub("organisation/model.gguf")
    (None, None)
    """
    parts = text.split("/")
    if len(parts) < 3 or not text.endswith(".gguf") or text.startswith((".", "/", "~")) or "\\" in text:
        return None
    return Source("/".join(parts[:2]), "/".join(parts[2:]))


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or text.endswith(".gguf")


def _has_model(folder: Path) -> bool:
    """Whether there are weights of a model; trainers leave its configuration beside adapters too."""
    weights = [file.name for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_")]
    return (folder / "config.json").is_file() and bool(weights)


def _check_weight_files(folder: Path, *, role: str) -> None:
    if any(folder.glob("*.safetensors")):
        if (folder / "adapter_config.json").is_file():
            raise UnsupportedAdapterError(
                f"{role}: {folder} holds a model and an adapter, and transformers would put one into the other unasked; move the "
                "adapter to a folder of its own, and name it with MemberConfig(adapter=...) where it is meant",
                member=role,
                source=str(folder),
            )
        return
    pickles = [file.name for pattern in PICKLED_WEIGHTS for file in folder.glob(pattern)]
    if pickles:
        raise UnsafeWeightsError(
            f"{role}: {folder} has only pickled weights ({', '.join(sorted(pickles))}), which can run code and are never "
            "opened; convert them with save_pretrained, which writes safetensors",
            member=role,
            source=str(folder),
        )
    raise CorruptWeightsError(
        f"{role}: {folder} has a config.json and no *.safetensors weights", member=role, source=str(folder)
    )


def gguf_path(source: Source, *, revision: str | None, role: str) -> Path:
    """The .gguf file of a source that has one; from a hub it is downloaded, with all its parts.

    Raises:
        ModelNotFoundError: the repository cannot be reached, or has no such file.
    """
    assert source.gguf_file is not None, "a source without a .gguf file is read by transformers"
    folder = Path(source.location)
    if folder.is_dir():
        return folder / source.gguf_file
    try:
        parts = [
            hf_hub_download(source.location, part.as_posix(), revision=revision)
            for part in split_paths(Path(source.gguf_file))
        ]
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"{role}: {source} is neither a local file nor reachable on the hub: {error}",
            member=role,
            source=str(source),
        ) from error
    return Path(parts[0])


def is_adapter(member: MemberConfig) -> bool:
    """Whether the source holds an adapter (PEFT's, or one in a .gguf file) and no model of its own."""
    path = Path(member.source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return read_gguf(path, member=member.source).kind == "adapter"
    if path.is_dir():
        return (path / "adapter_config.json").is_file() and not _has_model(path)
    if path.exists() or _looks_like_path(member.source):
        return False
    try:
        return find_adapter_config_file(member.source, revision=member.revision) is not None
    except OSError:  # unreachable or unknown hub id: loading it as a model will say so in full
        return False


def resolve_adapter(text: str, *, revision: str | None, role: str) -> Path:
    """Folder or .gguf file of an adapter; one on the hub is downloaded: configuration, safetensors, and its tokenizer.

    Raises:
        ModelNotFoundError: nothing is there.
    """
    path = Path(text).expanduser()
    if (path.is_dir() and (path / "adapter_config.json").is_file()) or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists() or _looks_like_path(text):
        raise ModelNotFoundError(
            f"{role}: no adapter at {text!r} (no adapter_config.json there, and no .gguf file)",
            member=role,
            source=text,
        )
    try:
        files = ["adapter_config.json", "adapter_model.safetensors", *WITH_AN_ADAPTER]
        return Path(snapshot_download(text, revision=revision, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"{role}: the adapter {text!r} is neither a folder nor reachable on the hub: {error}",
            member=role,
            source=text,
        ) from error
