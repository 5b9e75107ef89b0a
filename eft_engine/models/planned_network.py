"""One set of weights before it is loaded: who will compute it, what its configuration says, and how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from eft_engine.config import LlamaCppOptions, MemberConfig
from eft_engine.errors import UnsupportedModelError
from eft_engine.models.gguf_cache import has_state
from eft_engine.models.gguf_file import GGUFFile
from eft_engine.models.layers import LayerSummary
from eft_engine.models.self_check import WHAT_TO_DO
from eft_engine.models.sources import Source
from eft_engine.models.work_memory import Widths


@dataclass(frozen=True)
class PlannedNetwork:
    """One set of weights, before it is loaded.

    `notes` are sentences for people: why it runs as it does. Exactly the networks of GGUF files have a `gguf`, and exactly
    those that torch computes have a `config` and a `dtype`.
    """

    name: str
    source: Source
    member: MemberConfig
    runtime: Literal["torch", "llama.cpp"]
    architecture: str
    num_parameters: int
    parameter_bytes: int
    """Bytes of the weights as they will be held: packed ones by the headers of their files, or estimated (`notes` say so)."""
    type_name: str
    """Of the weights as they are held: a dtype, how they are packed (`4-bit (gptq)`), or the type of a GGUF file."""
    device: str
    logits_width: int
    context_len: int
    config: PreTrainedConfig | None = None
    model_class: type[PreTrainedModel] | None = None
    """Loads the text of a multimodal checkpoint, out of `config`; None: the class that transformers names for the checkpoint."""
    loading_bytes: int = 0
    """What it takes beyond `parameter_bytes` while it is loaded."""
    left_out_bytes: int = 0
    """Of the checkpoint, what is not read."""
    left_out_parameters: int = 0
    stored_bytes: int = 0
    """Of all that the checkpoint holds, with what is not read, and packed where it is packed; 0 for networks in llama.cpp."""
    layers: LayerSummary = field(default_factory=LayerSummary)
    unsupported: str | None = None
    """Why it cannot be run; None: nothing is known against it."""
    what_to_do: str = WHAT_TO_DO
    """Where it is not supported."""
    dtype: torch.dtype | None = None
    gguf: GGUFFile | None = None
    llama_cpp: LlamaCppOptions | None = None
    original_context_len: int | None = None
    """What llama.cpp is told in place of the file's. It takes rotary factors for long texts when it has room for longer ones
    than this, and its room grows: so it is told what makes it take the same ones always. None: there is one kind.
    """
    notes: tuple[str, ...] = ()
    widths: Widths | None = None
    """Of what torch computes with; None: llama.cpp computes."""
    adapter: Path | None = None
    """What is merged into it; an adapter that is switched per row is its member's, not the network's."""
    why_merged: str | None = None
    adapter_notes: tuple[str, ...] = ()
    """On the adapter that it was planned with, merged or not."""

    def check_supported(self) -> None:
        """Before any weight is read.

        Raises:
            UnsupportedModelError: it cannot be run.
        """
        if self.unsupported is not None:
            raise UnsupportedModelError(
                f"{self.name}: {self.source} cannot be run: {self.unsupported}; {self.what_to_do}",
                member=self.name,
                source=str(self.source),
            )

    def work_bytes(self, *, num_tokens: int, num_logits: int) -> int:
        """See `Network`."""
        widths = self.widths or Widths(self.logits_width)
        return widths.pass_bytes(num_tokens=num_tokens, num_logits=num_logits)

    @property
    def is_mapped(self) -> bool:
        """Whether the weights stay in the file, and memory has only what the system keeps of it."""
        return self.llama_cpp is not None and self.llama_cpp.use_mmap

    @property
    def has_state(self) -> bool:
        """Whether layers keep a state, as far as a GGUF file says."""
        return self.gguf is not None and has_state(self.gguf)
