"""What may run here: every decision of trust between hub and spoke, as one numbered list. Pure functions over plain values.

Whatever way the bytes came (MQTT, HTTPS, a sideloaded bundle), the same numbers decide; each is repeated at its block.

The directive (hub -> spoke), `verify_directive`:
 1. It is signed by `threshold` of the director keys that the TUF targets name.
 2. It is for this site, this spoke and this zone.
 3. Its generation is not lower than the last one accepted. (The same again is allowed, where it is the same document.)
 4. It was issued before it expires, and it has not expired at trusted time; nor has the trust metadata, if it is a new one. (What
    was accepted stays accepted: a spoke that is cut off goes on.)

The release (one model of a directive), `verify_release`:
 5. The trust metadata has not expired.
 6. Neither the version's digest nor anything that names it is denied. The deny list wins over all that follows.
 7. The version is a TUF target with exactly the index digest that the directive names: the hub chooses, it does not release.
 8. Its terms allow this zone and this regime. An empty list means nowhere.
 9. It is not older than what this spoke runs, unless the terms of what it runs grant the step back, or what it runs is denied.

The contents, `verify_contents`:
10. It is the released index, says that it is this model and version, and its residency label allows this zone and regime.
11. The publisher's signature has the released digest and length, is by one of the released publishers at trusted time, and covers
    exactly the files of the package (`model_formats.signing.signature`, with a list of its own).
12. No file of the package, nor its publisher's key, is denied.
13. The bytes of the chosen variant and of all common files hash to their digests.

The report (spoke -> hub), `verify_report`:
14. It is signed by that spoke's device key, and speaks of that spoke.
15. Its sequence is higher than the last one accepted, and its nonce was not seen.
16. Its time is not in the future of the hub's clock by more than `MAX_AHEAD`.
17. It does not contradict itself: a committed version is among what is served, with that index; and every file said to be served
    is a file of the package that the hub knows under that index.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from model_formats.core.types import ModelRef, digest_of
from model_formats.package.image_layout import PackageIncomplete, PackageTampered
from model_formats.package.oci import PackageInvalid
from model_formats.package.read import Package
from model_formats.signing.publisher_policy import Publisher, PublisherPolicy
from model_formats.signing.signature import verify_package
from model_formats.signing.statement import PublisherUntrusted
from sync.core.types import Reason, Regime, SpokeId, State
from sync.protocol.messages import DesiredModel, Directive, Report
from sync.trust.documents import ReleaseTerms
from sync.trust.dsse import unseal
from sync.trust.errors import ContentsRefused, DirectiveRefused, MetadataRefused, ReleaseRefused, ReportRefused
from sync.trust.keys import Key
from sync.trust.trusted_release import Released, Target

__all__ = ["ReleaseTarget", "verify_contents", "verify_directive", "verify_release", "verify_report"]

MAX_AHEAD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    """A version that may run here: what to fetch, and who must have signed it."""

    ref: ModelRef
    index: str
    index_size: int
    signature: str
    """Digest of the publisher's bundle."""
    signature_size: int
    policy: PublisherPolicy
    zones: tuple[str, ...]
    fallback: tuple[int, ...]
    going_back: bool = False
    """True where the directive goes to a lower version, and that was granted."""


def verify_directive(
    data: bytes,
    released: Released,
    me: SpokeId,
    zone: str,
    last_generation: int,
    now: datetime,
    *,
    last_digest: str | None = None,
) -> Directive:
    """Steps 1 to 4. `last_digest`: of the directive accepted at `last_generation`, where it is known.

    Raises EnvelopeRefused or DirectiveRefused with the reason; DocumentRefused for a rightly signed document of another schema.
    """
    # The signature first: nothing of a document is read, not even for an error message, before it is known who wrote it.
    directive = unseal(data, released.director_keys, Directive, released.director_threshold)  # 1
    if (directive.site, directive.spoke, directive.zone) != (me.site, me.spoke, zone):  # 2
        raise DirectiveRefused(
            Reason.WRONG_RECIPIENT,
            f"the directive is for {directive.site}/{directive.spoke} in zone {directive.zone}, this is {me} in zone {zone}",
        )
    if directive.generation < last_generation:  # 3
        raise DirectiveRefused(
            Reason.DIRECTIVE_REPLAYED, f"generation {directive.generation} is older than {last_generation}, which was accepted"
        )
    # The same directive again is normal (it is retained at the broker); another one under its number is an attack or a cloned
    # hub.
    if directive.generation == last_generation and last_digest not in (None, directive.digest):
        raise DirectiveRefused(Reason.DIRECTIVE_REPLAYED, f"two different directives of generation {last_generation}")
    if not directive.issued < directive.expires:  # 4
        raise DirectiveRefused(Reason.DIRECTIVE_EXPIRED, "the directive expires before it was issued")
    if now >= directive.expires:
        raise DirectiveRefused(
            Reason.DIRECTIVE_EXPIRED,
            f"the directive expired on {directive.expires:%Y-%m-%d %H:%M}; trusted time is {now:%Y-%m-%d %H:%M}",
            hint="The hub issues a new one by itself while it runs.",
        )
    # The accepted directive stays in force: a spoke without news serves on.
    if directive.generation > last_generation and released.expired:
        raise DirectiveRefused(
            Reason.METADATA_EXPIRED,
            f"{', '.join(released.expired)} metadata expired; until newer arrives no new directive is taken",
        )
    return directive


def verify_release(
    desired: DesiredModel, released: Released, zone: str, regime: Regime, current_version: int | None = None
) -> ReleaseTarget:
    """Steps 5 to 9. Raises ReleaseRefused or MetadataRefused, with the reason."""
    ref = ModelRef(desired.model, desired.version)
    # Expired metadata still says what was released; what was denied since it cannot say.
    if released.expired:  # 5
        raise MetadataRefused(Reason.METADATA_EXPIRED, f"{', '.join(released.expired)} metadata expired; nothing new is taken")
    if desired.index in released.denied:  # 6
        raise ReleaseRefused(Reason.DENIED, f"{ref} ({desired.index[:19]}) is on the deny list")
    target = released.target(ref.target)  # 7
    if target.digest != desired.index:
        raise ReleaseRefused(
            Reason.NOT_RELEASED, f"{ref} is released as {target.digest[:19]}, the directive wants {desired.index[:19]}"
        )
    terms = ReleaseTerms.of(target.custom)
    if zone not in terms.zones:  # 8
        raise ReleaseRefused(
            Reason.ZONE_FORBIDDEN, f"{ref} is released for {', '.join(terms.zones) or 'no zone'}, not for {zone}"
        )
    if terms.regimes is not None and regime not in terms.regimes:
        raise ReleaseRefused(Reason.REGIME_FORBIDDEN, f"{ref} is not released for regime {regime}")
    back = current_version is not None and desired.version < current_version  # 9
    if back and current_version is not None:
        _check_step_back(ModelRef(ref.name, current_version), ref, released)
    return _release(ref, target, terms, going_back=back)


def verify_contents(
    package: Package,
    bundle: bytes,
    release: ReleaseTarget,
    released: Released,
    zone: str,
    regime: Regime,
    *,
    variant: str | None = None,
) -> Publisher:
    """Steps 10 to 13; 13 only with `variant` (before, its files may still be on their way). Raises ContentsRefused."""
    spec = package.spec
    if package.index != release.index:  # 10
        raise ContentsRefused(
            Reason.PACKAGE_TAMPERED, f"{release.ref}: this is package {package.index[:19]}, not the released one"
        )
    if ModelRef(spec.model, spec.version) != release.ref:
        raise ContentsRefused(Reason.PACKAGE_INVALID, f"the package says it is {spec.model}@{spec.version}, not {release.ref}")
    if zone not in spec.residency.zones:
        raise ContentsRefused(Reason.ZONE_FORBIDDEN, f"{release.ref}: its residency label does not allow zone {zone}")
    if regime not in spec.residency.regimes:
        raise ContentsRefused(Reason.REGIME_FORBIDDEN, f"{release.ref}: its residency label does not allow regime {regime}")
    publisher = _verify_publisher(package, bundle, release, released)  # 11
    # Single files too: a bad weight file can be denied in whatever version it comes again.
    denied = {blob.digest for blob in package.files.values()} | {f"sha256:{publisher.name}"}  # 12
    if found := sorted(denied & released.denied):
        raise ContentsRefused(Reason.DENIED, f"{release.ref}: {found[0][:19]} is on the deny list")
    if variant is not None:  # 13
        try:
            package.check(variant)
        except (PackageTampered, PackageIncomplete) as e:
            raise ContentsRefused(Reason.PACKAGE_TAMPERED, e.message, hint=e.hint) from e
    return publisher


def verify_report(
    data: bytes,
    device_key: Key,
    spoke: SpokeId,
    last_sequence: int,
    now: datetime,
    *,
    seen_nonces: Collection[str] = (),
    files_of: Callable[[str], Collection[str] | None] | None = None,
) -> Report:
    """Steps 14 to 17. `files_of` gives the file digests of a package by its index digest (None where the hub does not know it).

    Raises EnvelopeRefused or ReportRefused, with the reason.
    """
    report = unseal(data, [device_key], Report, reason=Reason.REPORT_UNTRUSTED)  # 14
    if (report.site, report.spoke) != (spoke.site, spoke.spoke):
        raise ReportRefused(Reason.REPORT_UNTRUSTED, f"the report of {report.site}/{report.spoke} came from {spoke}")
    if report.sequence <= last_sequence or report.nonce in seen_nonces:  # 15
        raise ReportRefused(Reason.REPORT_REPLAYED, f"report {report.sequence} of {spoke} was seen before ({last_sequence})")
    if report.time > now + MAX_AHEAD:  # 16
        raise ReportRefused(
            Reason.REPORT_CONTRADICTS, f"report {report.sequence} of {spoke} comes from the future: {report.time}"
        )
    _check_serving(report, files_of or _unknown)  # 17
    return report


def _check_step_back(current: ModelRef, wanted: ModelRef, released: Released) -> None:
    # Judged by the terms of the version that runs: its author knows what may come after it.
    held = released.version(current)
    if held is not None and (held.digest in released.denied or wanted.version in ReleaseTerms.of(held.custom).fallback):
        return
    raise ReleaseRefused(
        Reason.DOWNGRADE_NOT_GRANTED,
        f"{wanted} is older than {current}, which this spoke runs, and the release of {current} does not allow to go back to it",
        hint="Release a version that lists the older one as fallback, or deny the newer one.",
    )


def _release(ref: ModelRef, target: Target, terms: ReleaseTerms, *, going_back: bool) -> ReleaseTarget:
    return ReleaseTarget(
        ref,
        target.digest,
        target.length,
        terms.signature.digest,
        terms.signature.length,
        terms.publishers,
        terms.zones,
        terms.fallback,
        going_back,
    )


def _verify_publisher(package: Package, bundle: bytes, release: ReleaseTarget, released: Released) -> Publisher:
    if len(bundle) != release.signature_size or digest_of(bundle) != release.signature:
        raise ContentsRefused(Reason.PUBLISHER_UNTRUSTED, f"{release.ref}: the signature is not the one that was released")
    try:
        return verify_package(package.blobs, release.index, bundle, release.policy, released.now)
    except PublisherUntrusted as e:
        raise ContentsRefused(Reason.PUBLISHER_UNTRUSTED, f"{release.ref}: {e.message}", hint=e.hint) from e
    except PackageTampered as e:
        raise ContentsRefused(Reason.PACKAGE_TAMPERED, e.message, hint=e.hint) from e
    except (PackageInvalid, PackageIncomplete) as e:
        raise ContentsRefused(Reason.PACKAGE_INVALID, e.message, hint=e.hint) from e


def _check_serving(report: Report, files_of: Callable[[str], Collection[str] | None]) -> None:
    about = next((s for s in report.serving if s.model == report.model), None)
    if report.state is State.COMMITTED and (about is None or about.index != report.index or about.version != report.version):
        raise ReportRefused(
            Reason.REPORT_CONTRADICTS,
            f"report {report.sequence}: {report.model}@{report.version} is said to be committed, but not served",
        )
    for serving in report.serving:
        known = files_of(serving.index)
        if known is not None and serving.file not in known:
            raise ReportRefused(
                Reason.REPORT_CONTRADICTS,
                f"report {report.sequence}: {serving.file[:19]} is no file of {serving.model}@{serving.version}",
            )


def _unknown(_index: str) -> None:
    return None
