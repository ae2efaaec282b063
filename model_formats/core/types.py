"""Plain types that every room shares: digests, references, tensors.

Nothing here uses disk or network. Names follow docs/terminology.md.
"""

import hashlib
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from msgspec import Meta, Struct

from model_formats.core.errors import OperatorError

__all__ = [
    "DIGEST_PATTERN",
    "NAME_PATTERN",
    "AwareDatetime",
    "Datatype",
    "Digest",
    "Direction",
    "ModelRef",
    "Name",
    "digest_of",
    "digest_of_file",
    "hex_of",
    "matching",
]

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"


def matching(pattern: str) -> Meta:
    """For text that is this pattern, `^...$`, to its last character: Python's `$` alone lets a line end pass."""
    return Meta(pattern=rf"{pattern}(?!\n)")


Name = Annotated[str, matching(NAME_PATTERN)]
"""A model, site, spoke, zone, rollout or ring: a DNS label, so that it fits a topic, a path and a certificate."""

Digest = Annotated[str, matching(DIGEST_PATTERN)]
"""`sha256:` and 64 lower-case hexadecimal digits, as in OCI."""

AwareDatetime = Annotated[datetime, Meta(tz=True)]
"""A time with its offset from UTC, in JSON as RFC 3339."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
"""Tensor element types, in the words of the Open Inference Protocol v2."""


Direction = Literal["up", "down", "spread", "narrow", "mix", "missing", "none"]
"""Which way a column moved: its values, their spread, the mix of its categories, or what is missing or unknown."""


def digest_of(data: bytes) -> str:
    """The OCI digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """The OCI digest of a file, read in pieces."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def hex_of(digest: str) -> str:
    """The hexadecimal part of a well-formed digest; raises ValueError otherwise (so that no digest becomes a path unseen)."""
    if not re.fullmatch(DIGEST_PATTERN, digest):
        raise ValueError(f"not a sha256 digest: {digest!r}")
    return digest.removeprefix("sha256:")


class ModelRef(Struct, frozen=True, order=True):
    """One version of one model, written `digits@2`."""

    name: str
    version: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name@version`; raises OperatorError on anything else."""
        name, _, version = text.partition("@")
        if not re.fullmatch(NAME_PATTERN, name) or not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise OperatorError(f"{text!r} is not a model version", hint="Write it as NAME@VERSION, for example digits@2.")
        return cls(name, int(version))

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def target(self) -> str:
        """The TUF target path of this version's OCI index."""
        return f"models/{self.name}/{self.version}/index.json"
