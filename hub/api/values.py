"""Lets our `Value` types stand inside FastAPI's models, with their own JSON and schema.

FastAPI knows pydantic's models; what is signed and sent is a `Value` (core/document.py). `Annotated[Serving, AS_IT_IS]`
lets one stand in the other.
"""

from typing import Annotated, Any, Final

import msgspec
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, core_schema

from model_formats.core.document import Value
from model_formats.core.types import DIGEST_PATTERN, NAME_PATTERN

__all__ = ["AS_IT_IS", "Digest", "Name"]

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""`model_formats.core.types.Name`, in pydantic's words."""
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
"""`model_formats.core.types.Digest`, in pydantic's words."""


class _AsItIs:
    """What pydantic asks of an annotation (its documentation: "Custom types", "Handling third-party types")."""

    def __get_pydantic_core_schema__(self, source: type[Value], _: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda given: given if isinstance(given, source) else source.of_plain(given),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.plain),
            metadata={"value": source},
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, _: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = msgspec.json.schema(schema["metadata"]["value"])
        found: dict[str, Any] = _in_place(whole, whole.pop("$defs"))
        return found


AS_IT_IS: Final = _AsItIs()


def _in_place(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema without references: OpenAPI keeps those of all models in one list of its own."""
    if isinstance(schema, dict):
        name = schema.get("$ref", "").removeprefix("#/$defs/")
        return _in_place(parts[name], parts) if name else {key: _in_place(value, parts) for key, value in schema.items()}
    return [_in_place(value, parts) for value in schema] if isinstance(schema, list) else schema
