"""Whether a member's adapter shares the network of others in torch, or has one of its own."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from eft_engine.errors import UnsupportedAdapterError
from eft_engine.models.adapter_errors import unsupported
from eft_engine.models.adapter_fit import fit_adapter
from eft_engine.models.adapter_folder import read_adapter
from eft_engine.models.sources import ResolvedMember
from eft_engine.models.towers import num_parameters


@dataclass(frozen=True)
class PlannedAdapter:
    """What a network holds of the adapter of the member that it is planned for.

    `why_own`: why the adapter is inside, in a network of its own; None: nothing is inside. `num_added`: parameters that the network
    has beyond those of its source. `notes` are sentences for people.
    """

    skeleton: PreTrainedModel
    why_own: str | None = None
    num_added: int = 0
    notes: tuple[str, ...] = ()


def plan_adapter(role: str, member: ResolvedMember, skeleton: PreTrainedModel) -> PlannedAdapter:
    """Find out how a member's adapter, if it has one, is held by a network in torch.

    Args:
        role: whose it is, for messages.
        member: what it is.
        skeleton: the network without numbers; it is not changed.

    Raises:
        UnsafeWeightsError, CorruptWeightsError: see `read_adapter`; or it is not for this network.
        UnsupportedAdapterError: it cannot be held, or not in the way that was asked for.
    """
    if member.adapter is None:
        return PlannedAdapter(skeleton)
    if member.config.tensor_parallel:
        raise UnsupportedAdapterError(
            f"{role}: an adapter cannot sit on a tensor-parallel network; leave tensor_parallel out, or merge the "
            "adapter and give the merged model",
            member=role,
            source=str(member.adapter),
        )
    if not member.adapter.is_dir():
        raise UnsupportedAdapterError(
            f"{role}: {member.adapter} is an adapter in llama.cpp's format and its network, {member.source}, runs in torch; give "
            "the PEFT folder, or let llama.cpp run the network (a .gguf file, and runtime 'auto' or 'llama.cpp')",
            member=role,
            source=str(member.adapter),
        )
    adapter = read_adapter(member.adapter, member=role)
    fit = fit_adapter(skeleton, adapter, member=role, own=bool(member.config.merge))
    why = fit.why_own
    if why is not None and member.config.merge is False:
        raise unsupported(
            adapter, role, [f"merge=False was asked for, and it cannot be switched per row: {why}"], "Leave merge out."
        )
    if why is None:
        return PlannedAdapter(skeleton, notes=fit.notes)
    return PlannedAdapter(
        fit.skeleton,
        why,
        num_parameters(fit.skeleton) - num_parameters(skeleton),
        (f"adapter {'merged into' if fit.is_merged else 'in'} a network of its own: {why}", *fit.notes),
    )
