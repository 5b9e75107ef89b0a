"""The JSON schema of a pydantic class for those who write its objects."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from eft_integrations.chat.schemas.keywords import LARGEST
from eft_integrations.chat.schemas.strings import HOST, NAIVE_DATE_TIME, whole


class WritersSchema(GenerateJsonSchema):
    """Pydantic's own, where that is as narrow as what the class accepts."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """See `GenerateJsonSchema`. A decimal is written as a number, since not every text is one: with its digits, and no larger
        than what floats tell apart.
        """
        found = super().decimal_schema(schema)
        numbers = [own for own in found.get("anyOf", ()) if own.get("type") == "number"]
        if not numbers:
            return found
        number = dict(numbers[0])
        places, digits = schema.get("decimal_places"), schema.get("max_digits")
        largest = float(LARGEST)
        if places is not None:
            number.setdefault("multipleOf", 10.0**-places)
            largest = min(largest, 10.0 ** (digits - places) - 10.0**-places) if digits is not None else largest
        if not {"maximum", "exclusiveMaximum"} & set(number):
            number["maximum"] = largest
        if not {"minimum", "exclusiveMinimum"} & set(number):
            number["minimum"] = -largest
        return number

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """See `GenerateJsonSchema`. Keys with a pattern are the only ones; keys that are numbers are written as such."""
        found = super().dict_schema(schema)
        if schema.get("keys_schema", {}).get("type") == "int":
            found["propertyNames"] = {"pattern": "^-?[0-9]{1,18}$"}
        return {**found, "additionalProperties": False} if "patternProperties" in found else found

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """See `GenerateJsonSchema`. With the schemes, and the hosts that any reader takes for one."""
        found = super().url_schema(schema)
        if schemes := schema.get("allowed_schemes"):
            found["pattern"] = f"^(?:{'|'.join(schemes)})://(?:{HOST})(?::[0-9]{{1,4}})?(?:[/?#]|$)"
        return found

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """See `GenerateJsonSchema`. The format `date-time` demands a zone, which some classes refuse."""
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "pattern": whole(NAIVE_DATE_TIME)}
        return super().datetime_schema(schema)


def schema_of_class(shape: Any) -> dict[str, Any]:
    """The schema of a pydantic class of either version. Definitions stay where they are."""
    if isinstance(shape, type) and issubclass(shape, BaseModel):
        return shape.model_json_schema(schema_generator=WritersSchema)
    schema: dict[str, Any] = shape.model_json_schema() if hasattr(shape, "model_json_schema") else shape.schema()
    return schema
