"""The weights of requests in vLLM's Model Runner V2: kept by request, laid out by token before every forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from eft_integrations.vllm.composing import tokens_of_requests
from eft_integrations.vllm.request_weights import effective_row

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
    from vllm.v1.worker.gpu.states import RequestState

    from eft_integrations.vllm.model import EFTForCausalLM


class EFTModelState(DefaultModelState):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Hands `eft_weights` to the model, [tokens, pairs + 1], always in the same memory: a CUDA graph reads where it was recorded.
    Behind the weights of the pairs stands what is plausible.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: EFTForCausalLM,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._own: dict[str, float] = model.options.weights
        self._rows = UvaBackedTensor((self.max_num_reqs, len(model.options.row)), dtype=torch.float32)
        self._rows.np[:] = model.options.row
        self._rows.copy_to_uva()
        self._weights = (
            cast(Tensor, model.own_weights).to(device).repeat(self.max_num_tokens, 1)
        )  # [max tokens, pairs + 1]
        self._token_index = torch.arange(self.max_num_tokens, dtype=torch.int32, device=device)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Keep the weights of a request that begins."""
        super().add_request(req_index, new_req_data)
        sampling = new_req_data.sampling_params
        self._rows.np[req_index] = effective_row(None if sampling is None else sampling.extra_args, self._own)

    def apply_staged_writes(self) -> None:
        """Let the device see the weights of new requests."""
        super().apply_staged_writes()
        self._rows.copy_to_uva()

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, object]:
        """The weights of every token of the batch, and whatever else the model's inputs need."""
        inputs: dict[str, object] = super().prepare_inputs(input_batch, req_states)
        num_tokens = input_batch.num_tokens_after_padding
        rows = self._rows.gpu[input_batch.idx_mapping]  # [requests, pairs + 1]
        starts = input_batch.query_start_loc[: rows.shape[0] + 1]
        inputs["eft_weights"] = self._lay_out(rows, starts, num_tokens)
        return inputs

    def _lay_out(self, rows: Tensor, starts: Tensor, num_tokens: int) -> Tensor:
        return tokens_of_requests(rows, starts, self._token_index[:num_tokens], self._weights[:num_tokens])

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, object]:
        """The same memory, for a CUDA graph that is recorded."""
        inputs: dict[str, object] = super().prepare_dummy_inputs(num_reqs, num_tokens)
        inputs["eft_weights"] = self._weights[:num_tokens]
        return inputs
