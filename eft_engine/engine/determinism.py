"""Whether a text is a function of request and seed alone.

A network whose rows do not depend on their company (`Network.is_invariant`) gives the same logits however a text is batched, cut,
drafted or cached, so that everything above may follow measured time. With others a request that is alone still gives the same text
every time: how much is drafted goes by costs that were measured once on the machine, acceptance is learnt anew in each request, and
the last token of a prompt is read alone, as it is when the prompt comes again.
"""

from __future__ import annotations

from collections.abc import Sequence

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.network import Network


def check_deterministic(networks: Sequence[Network]) -> None:
    """For `EngineConfig.deterministic`.

    Raises:
        UnsupportedModelError: rows of a network depend on what is computed beside them.
    """
    variant = [network for network in networks if not network.is_invariant]
    if not variant:
        return
    named = ", ".join(f"{network.name} ({type(network).__name__})" for network in variant)
    raise UnsupportedModelError(
        "deterministic=True needs networks whose rows do not depend on what is computed beside them; "
        f"in torch and llama.cpp they do: {named}. "
        "The kernels for a CPU compute Llama, Mistral, Qwen2, Qwen3 and Gemma 3 without that, in float32 and bfloat16: "
        "leave cpu_kernels on, and take runtime='torch' for .gguf files. "
        "Without deterministic=True a request that is alone on its engine gives the same text every time",
        member=variant[0].name,
    )
