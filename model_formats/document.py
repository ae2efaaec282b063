"""Documents: everything that is sent, signed or kept, as strict frozen values with one byte form.

Law (tested with hypothesis): for every document d, `type(d).parse(d.canonical()) == d`, and `canonical()` is RFC 8785
(JSON Canonicalization Scheme), so equal documents have equal bytes, digests and signatures.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

import rfc8785
from pydantic import BaseModel, ConfigDict, ValidationError

from model_formats.errors import RefusedError
from model_formats.types import digest_of

__all__ = ["Document", "DocumentRefused", "Value"]


class DocumentRefused(RefusedError):
    """Bytes that are not the document they should be: wrong kind or schema, unknown or missing field, too large."""

    code = "document_invalid"
    http = 400
    hint = "The sender and this program may be of different versions; nothing was changed."


class Value(BaseModel):
    """A part of a document: frozen, strict, no unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        populate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
        defer_build=True,
    )


class Document(Value):
    """A whole document. Subclasses declare `kind: Literal[...] = ...` and `schema_: Literal[n] = Field(n, alias="schema")`."""

    max_bytes: ClassVar[int] = 1 << 20

    def canonical(self) -> bytes:
        """The one byte form (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """Digest of the canonical bytes."""
        return digest_of(self.canonical())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read bytes from anywhere. Raises DocumentRefused that names the field and the rule; duplicate keys are refused."""
        name = cls.__name__
        if len(data) > cls.max_bytes:
            raise DocumentRefused(f"{name}: {len(data)} bytes, more than the {cls.max_bytes} allowed")
        try:
            json.loads(data, object_pairs_hook=_no_duplicates)
            return cls.model_validate_json(data)
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise DocumentRefused(f"{name}: {where}: {first['msg']}") from e
        except (ValueError, RecursionError) as e:
            raise DocumentRefused(f"{name}: not JSON: {e}") from e

    @classmethod
    def read(cls, path: Path) -> Self:
        """Parse a file that a person named. Raises DocumentRefused that names the file, or says that it cannot be read."""
        try:
            return cls.parse(path.read_bytes())
        except OSError as e:
            raise DocumentRefused(f"{path} cannot be read: {e.strerror}", hint="Is it the right file?") from e
        except DocumentRefused as e:
            raise DocumentRefused(f"{path}: {e.message}", hint=f"Is it the right file, and whole? {e.hint}") from e


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found
