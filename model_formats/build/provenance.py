"""`provenance.json`: an in-toto statement (v1) with SLSA build provenance (v1): what was built, from what, by which code."""

import platform
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import rfc8785

from model_formats.core.types import hex_of
from model_formats.documents.evidence import Evidence
from model_formats.documents.package_spec import PackageSpec

__all__ = ["BUILD_TYPE", "provenance"]

BUILD_TYPE = "https://spokeshave.dev/build/model/v1"


def provenance(
    spec: PackageSpec, evidence: Evidence, files: Mapping[str, str], tools: Mapping[str, str], finished: datetime
) -> bytes:
    """Canonical JSON. `files` maps each file's path in the package to its digest, `tools` names to versions."""
    lineage = evidence.lineage
    statement: Any = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": hex_of(digest)}} for name, digest in sorted(files.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"model": spec.model, "version": spec.version, "source": lineage.source_format},
                "internalParameters": {**lineage.parameters, "recipes": {v.variant: v.recipe for v in evidence.variants}},
                "resolvedDependencies": _inputs(evidence)
                + [{"name": n, "uri": f"pkg:pypi/{n}@{v}"} for n, v in sorted(tools.items())],
            },
            "runDetails": {
                "builder": {"id": "https://spokeshave.dev/hub", "version": {"python": platform.python_version()}},
                "metadata": {"invocationId": lineage.run or "", "finishedOn": finished.isoformat()},
            },
        },
    }
    return rfc8785.dumps(statement)


def _inputs(evidence: Evidence) -> list[Any]:
    named = {
        "training-set": evidence.lineage.dataset,
        "calibration-set": evidence.calibration.digest if evidence.calibration else None,
        "parent": evidence.lineage.parent,
    }
    return [{"name": name, "digest": {"sha256": hex_of(digest)}} for name, digest in named.items() if digest]
