"""Writes federated.json: `python docs/vectors/make_federated.py`. The test beside the code reads the file, not this script."""

import hashlib
import json
from pathlib import Path

from model_formats.core.types import digest_of
from sync.core.types import SpokeId
from sync.federated.masks import masked, public_of, total


def main() -> None:
    """Write the file: three sites (a real cohort has ten), fixed secrets."""
    cohort = digest_of(b"cohort")
    sites = [SpokeId("berlin"), SpokeId("dubai"), SpokeId("dubai-2")]
    secrets = {site: hashlib.sha256(str(site).encode()).digest() for site in sites}
    keys = {site: public_of(secret) for site, secret in secrets.items()}
    values = [[1, 0, -7], [2, 10, 2**40], [3, 100, -(2**40)]]
    shares = [
        masked(v, site, secrets[site], {s: k for s, k in keys.items() if s != site}, cohort)
        for site, v in zip(sites, values, strict=True)
    ]
    found = {
        "cohort": cohort,
        "sites": [
            {"spoke": str(s), "secret": secrets[s].hex(), "key": keys[s].hex(), "values": v, "share": list(share)}
            for s, v, share in zip(sites, values, shares, strict=True)
        ],
        "total": list(total(shares)),
    }
    Path(__file__).with_name("federated.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
