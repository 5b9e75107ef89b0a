"""LlamaIndex's tools in OpenAI's form."""

from __future__ import annotations

from typing import Any

from llama_index.core.tools.types import ToolMetadata

from eft_integrations.chat.schemas.display import untitled
from eft_integrations.class_schema import schema_of_class
from eft_integrations.json_types import JsonObject


def tool_form(metadata: ToolMetadata) -> JsonObject:
    """A tool in OpenAI's form with the whole schema of its class, of which LlamaIndex' own form keeps the properties only."""
    form: dict[str, Any] = metadata.to_openai_tool(skip_length_check=True)
    if metadata.fn_schema is None:
        return form
    schema = schema_of_class(metadata.fn_schema)
    parameters = untitled({key: value for key, value in schema.items() if key != "description"})
    return {**form, "function": {**form["function"], "parameters": parameters}}
