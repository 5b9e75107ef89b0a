"""Bad weights end as an error of their request: the classes by which vLLM's front end checks a request's extra arguments.

vLLM checks requests with the custom logits processors that a model is started with, named "module:Class". These classes
process nothing; they carry the pairs in their name, so that every process that vLLM starts makes the same class of the same
text and nothing is kept on the side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from eft_integrations.vllm.request_weights import SHARE_KEY, read_share, read_weights

if TYPE_CHECKING:
    from vllm import SamplingParams

_PREFIXES = {"RequestCheckV1_": False, "RequestCheckV2_": True}


def check_name(own: Mapping[str, float], *, v2: bool) -> str:
    """What vLLM's list of logits processors calls the check of a trio with these pairs.

    Args:
        own: the pairs' own weights, by name.
        v2: for Model Runner V2, whose processors are of another class.
    """
    prefix = next(prefix for prefix, of_v2 in _PREFIXES.items() if of_v2 is v2)
    return f"{__name__}:{prefix}{json.dumps(dict(own)).encode().hex()}"


def is_check(processor: object) -> bool:
    """Whether an entry of vLLM's list of logits processors is one of these."""
    return isinstance(processor, str) and processor.startswith(f"{__name__}:")


def __getattr__(name: str) -> type:
    """The class of a name that `check_name` made (PEP 562)."""
    for prefix, v2 in _PREFIXES.items():
        if name.startswith(prefix):
            return _check_class(name, bytes.fromhex(name.removeprefix(prefix)).decode(), v2)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _check_class(name: str, own_json: str, v2: bool) -> type:
    own: dict[str, float] = json.loads(own_json)

    def validate_params(cls: type, sampling_params: SamplingParams) -> None:
        read_weights(sampling_params.extra_args, own)
        if read_share(sampling_params.extra_args) and sampling_params.structured_outputs is not None:
            raise ValueError(
                f"{SHARE_KEY} and structured outputs exclude each other in vLLM, which forbids tokens behind the composition; "
                "leave one of them out, or ask an engine of this package"
            )

    if v2:
        from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as Processor

        methods = {
            "add_request": lambda self, req_idx, sampling_params: False,
            "apply": lambda self, logits, context: logits,
        }
    else:  # the worker takes it out of the list, so it is never instantiated
        from vllm.v1.sample.logits_processor.interface import LogitsProcessor as Processor

        methods = {}
    return type(name, (Processor,), {**methods, "validate_params": classmethod(validate_params)})
