"""Attacks on a spoke's word to the hub: verifier steps 14 to 17, and receipts."""

from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner

from model_formats.core.types import digest_of
from sync.core.clock import ManualClock
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import Report, Serving
from sync.sideload.receipts import (
    Receipt,
    Receipts,
    ReceiptsKnown,
    check_egress_chain,
    claimed_spoke,
    read_receipts,
    write_receipts,
)
from sync.trust.dsse import seal
from sync.trust.errors import TrustRefused
from sync.trust.verifier import verify_report

DUBAI, NOW = SpokeId("dubai"), ManualClock().now()
INDEX, FILE = digest_of(b"index"), digest_of(b"file")
DEVICE = CryptoSigner.generate_ecdsa()


def report(**changes) -> Report:
    serving = Serving(model="digits", version=1, index=INDEX, file=FILE, variant="onnx-int8", engine="onnxruntime")
    fields = {
        "site": "dubai",
        "spoke": "main",
        "sequence": 7,
        "nonce": "0" * 32,
        "time": NOW,
        "generation": 3,
        "model": "digits",
        "version": 1,
        "index": INDEX,
        "previous": State.PROBATION,
        "state": State.COMMITTED,
        "reason": Reason.NONE,
        "serving": (serving,),
    }
    return Report(**{**fields, **changes})


def check(data: bytes, last: int = 6, **options) -> Report:
    return verify_report(data, DEVICE.public_key, DUBAI, last, NOW, **options)


def refusal(data: bytes, **options) -> Reason:
    with pytest.raises(TrustRefused) as e:
        check(data, **options)
    return e.value.reason


def test_an_honest_report_is_believed() -> None:
    assert check(seal(report(), DEVICE), files_of=lambda index: {FILE}).sequence == 7


def test_a_report_by_another_device() -> None:
    assert refusal(seal(report(), CryptoSigner.generate_ecdsa())) is Reason.REPORT_UNTRUSTED


def test_a_report_for_another_site() -> None:
    assert refusal(seal(report(site="frankfurt"), DEVICE)) is Reason.REPORT_UNTRUSTED


@pytest.mark.parametrize("last", [7, 8])
def test_a_replayed_report(last: int) -> None:
    assert refusal(seal(report(), DEVICE), last=last) is Reason.REPORT_REPLAYED


def test_a_report_with_a_nonce_that_was_used() -> None:
    assert refusal(seal(report(), DEVICE), seen_nonces={"0" * 32}) is Reason.REPORT_REPLAYED


def test_a_report_from_the_future() -> None:
    assert refusal(seal(report(time=NOW + timedelta(days=2)), DEVICE)) is Reason.REPORT_CONTRADICTS


def test_a_commit_that_serves_nothing() -> None:
    assert refusal(seal(report(serving=()), DEVICE)) is Reason.REPORT_CONTRADICTS


def test_a_commit_that_serves_another_version() -> None:
    other = report().serving[0].replace(version=2, index=digest_of(b"other"))
    assert refusal(seal(report(serving=(other,)), DEVICE)) is Reason.REPORT_CONTRADICTS


def test_a_spoke_that_claims_a_digest_it_does_not_serve() -> None:
    assert refusal(seal(report(), DEVICE), files_of=lambda index: {digest_of(b"the real file")}) is Reason.REPORT_CONTRADICTS


def receipts(**changes) -> Receipts:
    message = Receipt(kind="report", text=seal(report(), DEVICE).decode())
    fields = {"site": "dubai", "spoke": "main", "created": NOW, "number": 1, "generation": 3, "messages": (message,)}
    return Receipts(**{**fields, **changes})


def test_receipts_come_back_and_their_reports_are_believed(tmp_path) -> None:
    data = write_receipts(tmp_path / "receipts", receipts(), DEVICE)
    assert claimed_spoke(data) == DUBAI
    found = read_receipts((tmp_path / "receipts").read_bytes(), DEVICE.public_key, DUBAI)
    assert check(found.messages[0].text.encode()).state is State.COMMITTED


def test_receipts_are_imported_once(tmp_path) -> None:
    data = write_receipts(tmp_path / "receipts", receipts(), DEVICE)
    with pytest.raises(ReceiptsKnown):
        read_receipts(data, DEVICE.public_key, DUBAI, imported={1})


LINKS = tuple(f"{n} {digest_of(str(n).encode())}" for n in range(1, 6))


def test_an_egress_log_that_grew_is_accepted() -> None:
    check_egress_chain(receipts(egress_chain=LINKS[:3]), receipts(egress_chain=LINKS, number=2))
    check_egress_chain(receipts(), receipts(egress_chain=LINKS, number=2))


@pytest.mark.parametrize(
    "later", [(), LINKS[:2], (*LINKS[:2], f"3 {digest_of(b'other')}", *LINKS[3:])], ids=["gone", "cut off", "rewritten"]
)
def test_an_egress_log_that_was_rewritten_shows_against_the_receipts_before(later: tuple[str, ...]) -> None:
    with pytest.raises(TrustRefused) as e:
        check_egress_chain(receipts(egress_chain=LINKS[:3]), receipts(egress_chain=later, number=2))
    assert e.value.reason is Reason.REPORT_CONTRADICTS


@pytest.mark.parametrize(("signer", "site"), [(CryptoSigner.generate_ecdsa(), "dubai"), (DEVICE, "frankfurt")])
def test_receipts_of_somebody_else(tmp_path, signer, site: str) -> None:
    data = write_receipts(tmp_path / "receipts", receipts(site=site), signer)
    with pytest.raises(TrustRefused) as e:
        read_receipts(data, DEVICE.public_key, DUBAI)
    assert e.value.reason is Reason.REPORT_UNTRUSTED


@pytest.mark.parametrize("junk", [b"", b"[]", b"null", b'{"payload":"AA"}', b"\xff\xfe", b'{"payload":1}'])
def test_what_is_no_file_of_receipts(junk: bytes) -> None:
    with pytest.raises(TrustRefused):
        claimed_spoke(junk)
