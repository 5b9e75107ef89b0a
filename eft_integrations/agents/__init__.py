"""Agent frameworks: a native model for smolagents, and for the others a configured client of the server. One file each.

    from eft_integrations.agents.smolagents import EFTModel                 # in this process, no server
    from eft_integrations.agents.openai_agents import agents_model          # these talk to `eft serve`
    from eft_integrations.agents.pydantic_ai import pydantic_ai_model
    from eft_integrations.agents.autogen import autogen_client
    from eft_integrations.agents.crewai import crewai_llm

A weight that is given here is the header `X-EFT-Reward-Weights` of every request; `eft_reward_weights` in a call's body goes first.
"""

from __future__ import annotations
