"""What one request may hold. All of it is counted before any of it is worked on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BoundSettings(BaseModel):
    """Most of everything in one request; more is 400, and says which bound it was."""

    model_config = ConfigDict(extra="forbid")

    json_values: int = Field(default=200_000, ge=1, description="values in a body, nested ones included")
    json_depth: int = Field(default=96, ge=8, le=200, description="levels of nesting in a body")
    messages: int = Field(default=2048, ge=1, description="messages of a conversation, or items of an input")
    parts: int = Field(
        default=8192, ge=1, description="parts that the contents of all messages have, tool calls included"
    )
    documents: int = Field(default=1024, ge=1, description="documents")
    prompt_pairs: int = Field(default=4, ge=0, description="prompt pairs; each may cost two more prompts and passes")
    prompts: int = Field(default=512, ge=1, description="texts in one call of completions, or items in one of score")
    answers: int = Field(default=1024, ge=1, description="prompts times n")
    tools: int = Field(default=256, ge=1, description="tools")
    stop: int = Field(default=64, ge=1, description="stop strings")
    stop_bytes: int = Field(default=16 * 1024, ge=1, description="bytes of all stop strings")
    stop_token_ids: int = Field(default=1024, ge=1, description="stop tokens")
    schema_bytes: int = Field(default=256 * 1024, ge=1, description="bytes of one schema, as JSON")
    schema_values: int = Field(default=20_000, ge=1, description="values of one schema, nested ones included")
    all_schemas_bytes: int = Field(default=1024 * 1024, ge=1, description="bytes of all schemas, tools included")
    logit_bias: int = Field(default=4096, ge=1, description="entries of logit_bias")
    name_chars: int = Field(
        default=1024, ge=64, description="characters of a name: of a model, a tool, a speaker or a call"
    )
    allow_chat_template: bool = Field(
        default=False, description="chat_template_kwargs may hold a chat template, which is a program of the caller"
    )
