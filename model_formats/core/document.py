"""Documents: everything that is sent, signed or kept, as strict frozen values with one byte form.

Law (tested with hypothesis): for every document d, `type(d).parse(d.canonical()) == d`, and `canonical()` is RFC 8785
(JSON Canonicalization Scheme), so equal documents have equal bytes, digests and signatures.

Rules are checked where bytes or plain values become a value (`parse`, `of_plain`), and once more where a document becomes bytes
(`canonical`): nothing that breaks its own rules is signed, sent or kept. Between the two a value is as cheap as a tuple.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Self, dataclass_transform

import msgspec
import rfc8785

from model_formats.core.errors import RefusedError
from model_formats.core.types import digest_of
from model_formats.core.validation import converted, decoded

__all__ = ["Document", "DocumentRefused", "Value"]


class DocumentRefused(RefusedError):
    """Bytes that are not the document they should be: wrong kind or schema, unknown or missing field, too large."""

    code = "document_invalid"
    http = 400
    hint = "The sender and this program may be of different versions; nothing was changed."

    @property
    def problem(self) -> str:
        """Field and rule, without the name of the document."""
        return self.message.partition(": ")[2]


class _Named(msgspec.StructMeta):
    """Fields are given by name, in every class: msgspec asks for it in each."""

    def __new__(mcls, name: str, bases: tuple[type, ...], space: dict[str, Any], **config: Any) -> "_Named":
        return super().__new__(mcls, name, bases, space, **{"kw_only": True, **config})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, metaclass=_Named, frozen=True, forbid_unknown_fields=True, rename={"schema_": "schema"}):
    """A part of a document: frozen, strict, no unknown fields. Rules between fields stand in `__post_init__` (ValueError)."""

    @classmethod
    def of_plain(cls, plain: object) -> Self:
        """From what JSON, YAML or TOML gives. Raises DocumentRefused that names the field and the rule."""
        try:
            return converted(plain, cls)
        except ValueError as e:
            raise DocumentRefused(f"{cls.__name__}: {e}") from e

    @classmethod
    def of_json(cls, data: bytes | str) -> Self:
        """From JSON. Raises DocumentRefused that names the field and the rule."""
        try:
            return decoded(data, cls)
        except ValueError as e:
            raise DocumentRefused(f"{cls.__name__}: {e}") from e

    @property
    def plain(self) -> Any:
        """As JSON gives it: names as they are sent."""
        return msgspec.to_builtins(self, enc_hook=_plain_number)

    @property
    def sparse(self) -> Any:
        """The same, without what is None."""
        return _without_none(self.plain)

    @property
    def json(self) -> bytes:
        """As JSON, in the order of the fields; for our own tables and logs."""
        return msgspec.json.encode(self, enc_hook=_plain_number)

    def replace(self, **changes: Any) -> Self:
        """With other fields."""
        return msgspec.structs.replace(self, **changes)

    def checked(self) -> Self:
        """Itself, held against its own rules. Raises DocumentRefused."""
        self.of_plain(self.plain)
        return self


class Document(Value):
    """A whole document. Subclasses declare `kind: Literal[...] = ...` and `schema_: Literal[n] = n` (`schema` in JSON)."""

    max_bytes: ClassVar[int] = 1 << 20

    def canonical(self) -> bytes:
        """The one byte form (RFC 8785). Raises DocumentRefused when a field breaks its rule."""
        plain = self.plain
        self.of_plain(plain)
        try:
            return rfc8785.dumps(plain)
        except rfc8785.CanonicalizationError as e:
            raise DocumentRefused(f"{type(self).__name__}: {e}") from e

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
        except (ValueError, RecursionError) as e:
            raise DocumentRefused(f"{name}: not JSON: {e}") from e
        return cls.of_json(data)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Parse a file that a person named. Raises DocumentRefused that names the file, or says that it cannot be read."""
        try:
            return cls.parse(path.read_bytes())
        except OSError as e:
            raise DocumentRefused(f"{path} cannot be read: {e.strerror}", hint="Is it the right file?") from e
        except DocumentRefused as e:
            raise DocumentRefused(f"{path}: {e.message}", hint=f"Is it the right file, and whole? {e.hint}") from e


def _plain_number(value: object) -> object:
    """NumPy's floats are Python's as well, and are sent as such."""
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no place in a document")


def _without_none(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _without_none(value) for key, value in plain.items() if value is not None}
    return [_without_none(value) for value in plain] if isinstance(plain, list | tuple) else plain


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found
