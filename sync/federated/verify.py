"""What a site checks before it takes part in a sum. Pure functions over plain values.

The question, `verify_question`:
 1. It is signed by `threshold` of the director keys that the TUF targets name.
 2. It is for this zone.
 3. At trusted time it was issued, and keys are still taken; and the trust metadata has not expired.

The cohort, `verify_cohort`:
 4. It is signed like the question, names exactly the question that this site gave its key for, and that has not expired.
 5. Every member's certificate is issued by the device CA, for clients, and valid at trusted time.
 6. Every member's key stands in a record that is signed with the key of that certificate, under the certificate's own name, for
    this question.
 7. No site is in it twice, no key is in it twice, and it has as many sites as the question asks for, ten at least.
 8. This site is in it, with the key that it gave.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from model_formats.core.errors import RefusedError, SpokeshaveError
from sync.core.types import Reason, SpokeId
from sync.federated.documents import Cohort, Member, Question
from sync.protocol.egress import MIN_SITES, EgressRecord, MaskedKey
from sync.trust.dsse import unseal
from sync.trust.keys import fingerprint, key_of_certificate
from sync.trust.trusted_release import Released

__all__ = ["CohortRefused", "CohortTooSmall", "Peers", "QuestionRefused", "verify_cohort", "verify_question"]

_SKEW = timedelta(minutes=10)


class QuestionRefused(RefusedError):
    """A question that is not the hub's, not for here, or over."""

    code = "question_refused"
    hint = "Nothing left. Ask again with `hub federated ask`."


class CohortRefused(RefusedError):
    """A cohort that a site cannot trust: a member that the device CA did not certify, or that did not sign its own key."""

    code = "cohort_refused"
    hint = "Nothing left, and the key that was given is destroyed. Treat it as an attack on the sum, or as a fault of the hub."


class CohortTooSmall(CohortRefused):
    """Fewer sites than a sum needs to hide one, or one site counted twice."""

    code = "cohort_too_small"
    hint = "Nothing left. A sum needs ten different sites at least, each once."


@dataclass(frozen=True, slots=True)
class Peers:
    """A cohort that was verified."""

    cohort: str
    keys: Mapping[SpokeId, bytes]
    """One-time public keys of all members, this site among them."""
    fingerprints: frozenset[str]
    """Digests of the members' device keys (SubjectPublicKeyInfo)."""


def verify_question(data: bytes, released: Released, zone: str) -> Question:
    """Steps 1 to 3. Raises EnvelopeRefused, DocumentRefused, QuestionRefused."""
    question = unseal(data, released.director_keys, Question, released.director_threshold)  # 1
    if question.zone != zone:  # 2
        raise QuestionRefused(f"question {question.name} is for zone {question.zone}, this is zone {zone}")
    if not question.issued - _SKEW <= released.now < question.closes:  # 3
        raise QuestionRefused(f"question {question.name} took keys until {question.closes:%Y-%m-%d %H:%M}")
    if released.expired:
        raise QuestionRefused(f"{', '.join(released.expired)} metadata expired; until newer arrives no question is answered")
    return question


def verify_cohort(data: bytes, released: Released, question: Question, me: SpokeId, public: bytes, ca: bytes) -> Peers:
    """Steps 4 to 8. `ca` is the device CA of this site's enrolment (PEM), `public` the key it gave.

    Raises EnvelopeRefused, DocumentRefused (not the hub's word, ignore it), CohortRefused, CohortTooSmall.
    """
    cohort = unseal(data, released.director_keys, Cohort, released.director_threshold)  # 4
    if cohort.question != question.digest or released.now >= question.expires:
        raise QuestionRefused(f"cohort {cohort.name} is for another question, or comes too late")
    authority = x509.load_pem_x509_certificate(ca)
    members = [_member(member, question, authority, released.now) for member in cohort.members]  # 5, 6
    keys = {spoke: key for spoke, key, _ in members}
    sites = {spoke.site for spoke in keys}
    if len(sites) != len(members) or len(set(keys.values())) != len(members):  # 7
        raise CohortTooSmall(f"{question.name}: {len(members)} members are only {len(sites)} sites, or share keys")
    if len(sites) < max(MIN_SITES, question.min_sites):
        raise CohortTooSmall(f"{question.name}: {len(sites)} sites, {max(MIN_SITES, question.min_sites)} are needed")
    if keys.get(me) != public:  # 8
        raise CohortRefused(f"{question.name}: {me} is not in the cohort with the key it gave")
    return Peers(cohort.digest, keys, frozenset(print_ for _, _, print_ in members))


def _member(member: Member, question: Question, authority: x509.Certificate, now: datetime) -> tuple[SpokeId, bytes, str]:
    spoke = _certified(member.certificate, authority, now)
    try:
        record = unseal(
            member.key.encode(), [key_of_certificate(member.certificate.encode())], EgressRecord, reason=Reason.REPORT_UNTRUSTED
        )
    except SpokeshaveError as e:
        raise CohortRefused(f"{spoke} did not sign the key that is said to be its own: {e.message}") from e
    body = record.body
    if (record.site, record.spoke) != (spoke.site, spoke.spoke) or not isinstance(body, MaskedKey):
        raise CohortRefused(f"the record with the certificate of {spoke} is by another, or holds no key")
    if body.question != question.digest:
        raise CohortRefused(f"the key of {spoke} was given for another question")
    return spoke, bytes(body.key), fingerprint(member.certificate.encode())


def _certified(pem: str, authority: x509.Certificate, now: datetime) -> SpokeId:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(authority)
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        spoke = SpokeId.parse(name)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, IndexError, SpokeshaveError) as e:
        raise CohortRefused(f"a member is not certified by the device CA: {e}") from e
    if spoke.username != name or ExtendedKeyUsageOID.CLIENT_AUTH not in uses:
        raise CohortRefused(f"the certificate of {name!r} is not a spoke's")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise CohortRefused(f"the certificate of {spoke} is not valid now")
    return spoke
