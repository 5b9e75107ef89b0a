"""The architecture `EFTForCausalLM`: every token goes through all members, and the logits of its row are composed.

The model's hidden states are those of the base, of each pair's tuned and reference model, and the bits of the row's weights,
side by side: [tokens, hidden sizes + weight columns]. See `composing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_gather,
)
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import maybe_prefix
from vllm.platforms import current_platform

from eft_integrations.vllm.composing import (
    PENALTY,
    columns_to_weights,
    compose_logits,
    implausible,
    num_weight_columns,
    weights_to_columns,
)
from eft_integrations.vllm.members import BASE, build_member, member_configs, prepare_head
from eft_integrations.vllm.trio_options import TrioOptions


class EFTForCausalLM(nn.Module):
    """A trio, or a base with several pairs, in vLLM's terms."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        trio = vllm_config.model_config
        self.options = TrioOptions.of(trio.hf_config)
        self.dtype = trio.dtype
        configs = dict(member_configs(trio, max_model_len=trio.max_model_len))
        self.members = nn.ModuleDict(
            {
                key: build_member(vllm_config, config, prefix=maybe_prefix(prefix, key))
                for key, config in configs.items()
            }
        )
        self.vocab_sizes = {key: config.get_vocab_size() for key, config in configs.items()}
        self.vocab_size = self.vocab_sizes[BASE]
        self._widths = [config.get_hidden_size() for config in configs.values()]
        self._width = sum(self._widths) + num_weight_columns(len(self.options.row), self.dtype)
        own = torch.tensor([self.options.row], dtype=torch.float32)
        self.register_buffer("own_weights", own, persistent=False)  # [1, pairs + 1]
        # Members with one vocabulary lie on the ranks in the same parts: these are composed, and one row is gathered instead
        # of all members'.
        same = len(set(self.vocab_sizes.values())) == 1
        obeying = [prepare_head(member, skip_gather=same) for member in self.members.values()]
        self.composes_parts = same and all(obeying)
        if same and not self.composes_parts and get_tensor_model_parallel_world_size() > 1:
            raise ValueError("a member computes its logits in a way of its own, so it cannot be tensor-parallel")
        if vllm_config.parallel_config.enable_batch_sharded_sampling and not self.composes_parts:
            raise ValueError(f"batch-sharded sampling needs vocabularies of one size, and they are {self.vocab_sizes}")
        self._masked: Tensor | None = None

    # ---- weights -----------------------------------------------------------------------------------------------------

    @property
    def secondary_weights(self) -> Sequence[DefaultModelLoader.Source]:
        """The small members' checkpoints, which vLLM reads after the base's own; it puts the prefix before their names."""
        return [
            DefaultModelLoader.Source(model_or_path=source, revision=revision, prefix=f"{key}.")
            for key, source, revision in self.options.small_members()
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Hand each checkpoint to its member; the names of all parameters that were loaded."""
        loaded: set[str] = set()
        for key, items in groupby(weights, self._member_of):
            names = self._member(key).load_weights(_own_names(items, key)) or ()
            loaded |= {f"members.{key}.{name}" for name in names}
        return loaded

    def _member_of(self, item: tuple[str, Tensor]) -> str:
        first = item[0].partition(".")[0]
        return first if first != BASE and first in self.members else BASE

    def _member(self, key: str) -> Any:
        return self.members[key]

    # ---- forward -----------------------------------------------------------------------------------------------------

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The base's embeddings (vLLM's protocol asks for it; the members embed by themselves)."""
        return cast(Tensor, self._member(BASE).embed_input_ids(input_ids))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
        eft_weights: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of all members and the weights of every token.

        Args:
            input_ids: [tokens].
            positions: [tokens].
            intermediate_tensors: None; there is no pipeline.
            inputs_embeds: None; each member has its own embeddings.
            eft_weights: [at least tokens, pairs + 1], float32: weights, and the share that is plausible; None: the pairs' own, as
                in runs that measure memory.

        Returns:
            [tokens, hidden sizes + weight columns].
        """
        assert inputs_embeds is None, "prompt embeddings are refused at the start"
        num_tokens = input_ids.shape[0]
        weights = (
            cast(Tensor, self.own_weights).expand(num_tokens, -1) if eft_weights is None else eft_weights[:num_tokens]
        )
        joined = torch.empty((num_tokens, self._width), dtype=self.dtype, device=input_ids.device)
        parts = torch.split(joined, [*self._widths, self._width - sum(self._widths)], dim=1)
        for key, part in zip(self.members, parts, strict=False):
            # Copied at once: the memory of a CUDA graph's result is used again by the graphs that run after it.
            part.copy_(self._member(key)(self._known_ids(key, input_ids), positions))
        parts[-1].copy_(weights_to_columns(weights, self.dtype))
        return joined

    def _known_ids(self, key: str, input_ids: Tensor) -> Tensor:
        """Ids behind the end of a member's vocabulary (no tokenizer makes them) must not read past its embeddings."""
        vocab_size = self.vocab_sizes[key]
        return input_ids if vocab_size >= self.vocab_size else input_ids.clamp(max=vocab_size - 1)

    # ---- logits ------------------------------------------------------------------------------------------------------

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The composed logits of rows of `forward`'s result: [rows, vocab], float32; None where vLLM gathers to another rank."""
        if not self.composes_parts:
            return self._compose_whole(hidden_states)
        logits = self.compute_logits_local(hidden_states)
        if get_tensor_model_parallel_world_size() > 1:
            gather = (
                tensor_model_parallel_all_gather if current_platform.use_all_gather() else tensor_model_parallel_gather
            )
            logits = gather(logits)
        return None if logits is None else logits[:, : self.vocab_size]

    def compute_logits_local(self, hidden_states: Tensor) -> Tensor:
        """The rank's part of the composed logits, padded as vLLM pads the vocabulary: [rows, padded vocab / ranks], float32."""
        assert self.composes_parts, "refused when the model was made"
        logits = self._compose(hidden_states)
        return self._mask(logits, start=get_tensor_model_parallel_rank() * logits.shape[1])

    def _compose_whole(self, hidden_states: Tensor) -> Tensor | None:
        """Vocabularies of different sizes are divided differently among ranks, so every member's logits are gathered first."""
        logits = self._compose(hidden_states)
        return None if logits is None else self._mask(logits, start=0)

    def _compose(self, hidden_states: Tensor) -> Any:
        parts = torch.split(hidden_states, [*self._widths, self._width - sum(self._widths)], dim=1)
        rows = {key: part.contiguous() for key, part in zip(self.members, parts, strict=False)}
        base = self._member(BASE).compute_logits(rows[BASE])
        small = self._logits_of_pairs(rows)
        if base is None:  # another rank composes, but this one has to take part in gathering for it
            for _ in small:
                pass
            return None
        rows_of_weights = columns_to_weights(parts[-1])
        weights, shares = rows_of_weights[:, :-1], rows_of_weights[:, -1:]
        base = base.float()
        start = get_tensor_model_parallel_rank() * base.shape[1] if self.composes_parts else 0
        num_known = max(min(self.vocab_sizes.values()) - start, 0)  # behind them is padding, or what only the base has
        best = self._best(self._mask(base, start=start)[:, :num_known])
        unlikely = implausible(base, best, shares)
        return compose_logits(base, small, weights).sub_(unlikely * PENALTY)

    def _best(self, logits: Tensor) -> Tensor:
        """The best of each row of the whole vocabulary, [rows, 1]; `logits` may be a rank's part, and empty."""
        if logits.shape[1]:
            best = logits.amax(dim=-1, keepdim=True)
        else:
            best = logits.new_full((logits.shape[0], 1), -torch.inf)
        if self.composes_parts and get_tensor_model_parallel_world_size() > 1:
            best = cast(Tensor, tensor_model_parallel_all_gather(best)).amax(dim=-1, keepdim=True)
        return best

    def _logits_of_pairs(self, rows: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Tuned and reference logits, a pair at a time: the logits of all members together would need much more memory."""
        for index, pair in enumerate(self.options.pairs.values()):
            tuned, reference = f"tuned_{index}", f"reference_{index}"
            yield (
                self._member(tuned).compute_logits(rows[tuned]),
                None if pair.reference is None else self._member(reference).compute_logits(rows[reference]),
            )

    def _mask(self, logits: Tensor, *, start: int) -> Tensor:
        """Make the ids impossible that do not mean the same token in all members; `start` is the id of the first column."""
        if not self.options.masked_ids:
            return logits
        if self._masked is None:
            here = [token - start for token in self.options.masked_ids if start <= token < start + logits.shape[1]]
            self._masked = torch.tensor(here, dtype=torch.long, device=logits.device)
        return logits.index_fill_(1, self._masked, -torch.inf)

    @staticmethod
    def get_model_state_cls() -> type:
        """What Model Runner V2 keeps for the requests of this model."""
        from eft_integrations.vllm.model_state import EFTModelState

        return EFTModelState


def _own_names(items: Iterable[tuple[str, Tensor]], key: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names of their own checkpoint."""
    prefix = "" if key == BASE else f"{key}."
    return ((name.removeprefix(prefix), tensor) for name, tensor in items)
