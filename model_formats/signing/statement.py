"""The content of a Model Signing signature: an in-toto statement that lists every file of the package with its digest.

Sources: OpenSSF Model Signing specification 1.0 (predicate `https://model_signing/signature/v1.0`), in-toto
Statement v1, DSSE 1.0.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from model_formats.core.errors import RefusedError
from model_formats.core.types import hex_of
from model_formats.package.oci import canonical

__all__ = ["IN_TOTO", "PublisherUntrusted", "pae", "read_statement", "statement"]

IN_TOTO = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


class PublisherUntrusted(RefusedError):
    """The publisher's signature is missing, wrong, or by somebody who may not release this model."""

    code = "publisher_untrusted"
    hint = "Ask who built the package; the publishers of a model family are listed in its TUF target."


def statement(name: str, files: Mapping[str, str]) -> bytes:
    """The statement over `files` (path -> digest), in alphabetical order of paths, as the reference library writes it."""
    resources = [{"name": path, "algorithm": "sha256", "digest": hex_of(files[path])} for path in sorted(files)]
    return canonical(
        {
            "_type": _STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": _root(resources)}}],
            "predicateType": _PREDICATE,
            "predicate": {
                "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
                "resources": resources,
            },
        }
    )


def read_statement(payload: bytes) -> dict[str, str]:
    """The files (path -> digest) that a statement covers. Raises PublisherUntrusted that names the rule it breaks."""
    try:
        page = json.loads(payload)
        predicate = page["predicate"]
        resources = predicate["resources"]
        subject = page["subject"]
        _require(
            page["_type"] == _STATEMENT and page["predicateType"] == _PREDICATE, "not a Model Signing statement, version 1.0"
        )
        _require(predicate["serialization"]["method"] == "files", "files signed in shards are not supported")
        _require(all(r["algorithm"] == "sha256" for r in resources), "a hash other than sha256")
        found = {str(r["name"]): "sha256:" + str(r["digest"]) for r in resources}
        _require(len(found) == len(resources), "a file is listed twice")
        _require(len(subject) == 1 and subject[0]["digest"]["sha256"] == _root(resources), "its root digest does not match")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise PublisherUntrusted(f"signature: statement is malformed: {e!r}") from e
    return found


def pae(payload: bytes, kind: str = IN_TOTO) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _root(resources: list[dict[str, Any]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()


def _require(holds: bool, rule: str) -> None:  # noqa: FBT001
    if not holds:
        raise PublisherUntrusted(f"signature: {rule}")
