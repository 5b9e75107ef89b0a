"""A GGUF file in llama.cpp: its weights, held once however many contexts compute with them, and the adapters on them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eft_engine.config import LlamaCppOptions
from eft_engine.errors import CorruptWeightsError, LoadError, LoadOutOfMemoryError, UnsupportedModelError
from eft_engine.models.gguf_file import GGUFFile
from eft_engine.models.llama_cpp.library import computes_on_gpu, library, reason_of, watch

MMAP, NO_MMAP = 1, 0
"""`llama_load_mode`."""

OVERRIDE_WITH_INTEGER = 0
"""`LLAMA_KV_OVERRIDE_TYPE_INT`."""


class LlamaCppWeights:
    """The weights of one file.

    Args:
        file: the header, which was checked when it was read.
        options: how to hold them.
        name: the member that is named in errors.
        original_context_len: see `PlannedNetwork`.
        progress: called with the bytes that have been read.

    Raises:
        UnsupportedModelError: llama.cpp does not know the architecture, or the model does not write text.
        CorruptWeightsError: tensors are missing, have other shapes, or values that are not finite.
        LoadOutOfMemoryError: memory ran out.
    """

    def __init__(
        self,
        file: GGUFFile,
        *,
        options: LlamaCppOptions,
        name: str,
        original_context_len: int | None = None,
        progress: Callable[[int], None],
    ) -> None:
        self.file = file
        self.name = name
        self._adapters: dict[Path, Any] = {}
        self._num_users = 0
        api = library()
        params = api.llama_model_default_params()
        params.load_mode = MMAP if options.use_mmap else NO_MMAP
        params.check_tensors = options.check_tensors
        params.use_extra_bufts = options.repack
        num_layers = options.n_gpu_layers
        params.n_gpu_layers = (-1 if computes_on_gpu() else 0) if num_layers is None else num_layers

        @api.llama_progress_callback  # type: ignore[untyped-decorator]
        def advance(share: float, _: object) -> bool:
            progress(int(share * file.tensor_bytes))
            return True

        params.progress_callback = advance
        overrides = _overrides(file, original_context_len)
        params.kv_overrides = overrides
        with watch() as lines:
            self.model = api.llama_model_load_from_file(str(file.paths[0]).encode(), params)
        if not self.model:
            raise _load_error(name, file, reason_of(lines))
        try:
            self._read_facts()
        except BaseException:
            self._free()
            raise

    def _read_facts(self) -> None:
        api, model = library(), self.model
        if api.llama_model_has_encoder(model) or not api.llama_model_has_decoder(model):
            raise self._unsupported("it reads text and does not write it")
        if api.llama_model_is_diffusion(model):
            raise self._unsupported("it writes by diffusion, not token by token")
        vocab = api.llama_model_get_vocab(model)
        self.num_tokens: int = api.llama_vocab_n_tokens(vocab)
        self.context_len: int = api.llama_model_n_ctx_train(model)
        self.has_state = bool(api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))
        """Whether layers keep a state, which cannot forget single tokens."""
        self.window: int = api.llama_model_n_swa(model)
        """Positions that the layers with the shortest view see; 0 when all see everything."""

    def _unsupported(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.name}: {self.file.paths[0]} ({self.file.architecture}) cannot be composed: {reason}",
            member=self.name,
            source=str(self.file.paths[0]),
        )

    def adapter(self, path: Path, *, member: str) -> Any:
        """The LoRA adapter of a GGUF file, loaded once.

        Raises:
            CorruptWeightsError: llama.cpp does not take it.
        """
        if path not in self._adapters:
            with watch() as lines:
                loaded = library().llama_adapter_lora_init(self.model, str(path).encode())
            if not loaded:
                raise CorruptWeightsError(
                    f"{member}: llama.cpp does not take the adapter {path} for {self.file.paths[0]}: {reason_of(lines)}",
                    member=member,
                    source=str(path),
                )
            self._adapters[path] = loaded
        return self._adapters[path]

    def use(self) -> None:
        """Another context computes with these weights."""
        self._num_users += 1

    def leave(self) -> None:
        """A context is gone; with the last one the weights go."""
        self._num_users -= 1
        if self._num_users == 0:
            self._free()

    def _free(self) -> None:
        library().llama_model_free(self.model)  # and its adapters
        self.model = None
        self._adapters.clear()


def _overrides(file: GGUFFile, original_context_len: int | None) -> Any:
    """What llama.cpp is to read in place of the file's metadata, and the empty entry that ends the list."""
    api = library()
    entries = (api.llama_model_kv_override * 2)()
    if original_context_len is not None:
        entries[0].tag = OVERRIDE_WITH_INTEGER
        entries[0].key = f"{file.architecture}.rope.scaling.original_context_length".encode()
        entries[0].value.val_i64 = original_context_len
    return entries


def set_adapter(context: ctypes.c_void_p, adapter: Any) -> None:
    """Let everything that `context` computes have this adapter, at its own scale."""
    api = library()
    adapters = (api.llama_adapter_lora_p_ctypes * 1)(adapter)
    failed = api.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
    assert not failed, "an adapter that was loaded for the model can be set"


def _load_error(name: str, file: GGUFFile, reason: str) -> LoadError:
    """The log is all that llama.cpp tells about a file that it does not load."""
    path = str(file.paths[0])
    if "unknown model architecture" in reason:
        return UnsupportedModelError(
            f"{name}: {path} is of the architecture {file.architecture!r}, which this llama.cpp does not know; a newer "
            "llama-cpp-python may, or MemberConfig(runtime='torch')",
            member=name,
            source=path,
        )
    if "alloc" in reason and "fail" in reason:
        return LoadOutOfMemoryError(
            f"{name}: llama.cpp could not allocate {file.tensor_bytes:,} bytes for {path}: {reason}",
            needed_bytes=file.tensor_bytes,
            available_bytes=None,
            device="cpu",
            member=name,
            source=path,
        )
    return CorruptWeightsError(
        f"{name}: llama.cpp does not load {path}: {reason}. The file may be damaged, or its parts joined in the wrong order; "
        "download it again",
        member=name,
        source=path,
    )
