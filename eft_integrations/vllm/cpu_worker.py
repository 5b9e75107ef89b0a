"""The weights of requests in vLLM's older model runner, which is the one that runs where there is no Triton: on a CPU.

It has no hook for a model's own inputs, so this worker extends the method that gathers them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from eft_integrations.vllm.admission import is_check
from eft_integrations.vllm.request_weights import effective_row
from eft_integrations.vllm.trio_options import TrioOptions

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class EFTCPUModelRunner(CPUModelRunner):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Hands `eft_weights` to the model, [max tokens, pairs + 1], laid out for the batch: weights, and what is plausible."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self._own = TrioOptions.of(self.model_config.hf_config).weights
        row = TrioOptions.of(self.model_config.hf_config).row
        self._weights = torch.tensor([row], dtype=torch.float32).repeat(self.max_num_tokens, 1)

    def _init_model_kwargs(self, num_reqs: int | None = None) -> dict[str, object]:
        inputs: dict[str, object] = super()._init_model_kwargs(num_reqs)
        if num_reqs == 0:  # a run that measures memory or compiles
            return inputs
        starts = self.query_start_loc.np
        for index, request_id in enumerate(self.input_batch.req_ids):
            sampling = self.requests[request_id].sampling_params
            row = effective_row(None if sampling is None else sampling.extra_args, self._own)
            self._weights[starts[index] : starts[index + 1]] = torch.tensor(row)
        inputs["eft_weights"] = self._weights
        return inputs


class EFTCPUWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's worker on a CPU with that runner."""

    def init_device(self) -> None:
        """Prepare the process, then put the runner in place."""
        # The checks belong to the front end; with speculative decoding this runner refuses any processor.
        processors = self.model_config.logits_processors or []
        self.model_config.logits_processors = [own for own in processors if not is_check(own)] or None
        super().init_device()
        self.model_runner = EFTCPUModelRunner(self.vllm_config, torch.device("cpu"))
