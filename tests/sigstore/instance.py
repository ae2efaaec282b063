"""A small private Sigstore instance on this machine: OIDC, Fulcio, its certificate log and Rekor, over HTTP.

Real cryptography with real formats, so that the sigstore library signs and verifies against it unchanged:

    OIDC    a token (JWT, ES256) that says who somebody is
    Fulcio  checks the token, issues a certificate for ten minutes with an embedded certificate timestamp (RFC 6962)
    Rekor   a Merkle tree of `dsse` 0.0.1 entries: inclusion proof, signed checkpoint, signed entry timestamp

What a real instance has and this one has not: a certificate log that can be read, persistence, witnesses.
"""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Fulcio", "Instance", "Oidc", "Rekor"]

ISSUER, ISSUER_OLD = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
"""Both are in Fulcio's certificates; the sigstore library's policy reads the old one."""
SCT_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
NAME = "rekor.stand-in.example"


class Oidc:
    """Says who somebody is."""

    def __init__(self, issuer: str) -> None:
        self.issuer, self._key = issuer, _key()

    def token(self, who: str, *, audience: str = "sigstore", life_s: float = 60) -> str:
        """A signed identity token."""
        now = int(datetime.now(UTC).timestamp())
        claims = {"iss": self.issuer, "sub": who, "aud": audience, "iat": now, "exp": int(now + life_s)}
        return jwt.encode(claims, self._key, algorithm="ES256")

    def read(self, token: str) -> str:
        """The subject of a token that this issuer signed. Raises jwt.PyJWTError."""
        claims = jwt.decode(token, self._key.public_key(), algorithms=["ES256"], audience="sigstore", issuer=self.issuer)
        return str(claims["sub"])


class Fulcio:
    """Issues short-lived certificates. `log` is the key of its certificate log."""

    def __init__(self, oidc: Oidc) -> None:
        self._oidc, self._key, self.log = oidc, _key(), _key()
        self.certificate = self._root()

    def issue(self, token: str, request: bytes) -> list[x509.Certificate]:
        """A certificate for the token's subject and the request's key, then the root. Raises jwt.PyJWTError."""
        who, csr = self._oidc.read(token), x509.load_pem_x509_csr(request)
        if not csr.is_signature_valid:
            raise ValueError("the request is not signed by its own key")
        builder = self._leaf(who, csr.public_key())
        draft = builder.add_extension(self._timestamps(b"\0" * 64), critical=False).sign(self._key, hashes.SHA256())
        signature = self.log.sign(self._to_be_logged(draft.tbs_precertificate_bytes), ec.ECDSA(hashes.SHA256()))
        return [
            builder.add_extension(self._timestamps(signature), critical=False).sign(self._key, hashes.SHA256()),
            self.certificate,
        ]

    def _leaf(self, who: str, key: Any) -> x509.CertificateBuilder:
        now, issuer = datetime.now(UTC).replace(microsecond=0), self._oidc.issuer.encode()
        self._logged = int(now.timestamp() * 1000)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(who)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(ISSUER_OLD, issuer), critical=False)
            .add_extension(x509.UnrecognizedExtension(ISSUER, b"\x0c" + bytes([len(issuer)]) + issuer), critical=False)
        )

    def _to_be_logged(self, certificate: bytes) -> bytes:
        """RFC 6962, 3.2: the digitally-signed struct of a precertificate entry."""
        entry = _key_id(self._key) + len(certificate).to_bytes(3, "big") + certificate
        return struct.pack("!BBQH", 0, 0, self._logged, 1) + entry + b"\0\0"

    def _timestamps(self, signature: bytes) -> x509.UnrecognizedExtension:
        """RFC 6962, 3.3: a list with one timestamp, in an OCTET STRING."""
        head = struct.pack("!B32sQH", 0, _key_id(self.log), self._logged, 0)
        one = head + struct.pack("!BBH", 4, 3, len(signature)) + signature  # SHA-256, ECDSA
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        length = bytes([len(listed)]) if len(listed) < 128 else b"\x81" + bytes([len(listed)])
        return x509.UnrecognizedExtension(SCT_EXTENSION, b"\x04" + length + listed)

    def _root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fulcio stand-in")])
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


class Rekor:
    """The log. `late`: how far its clock is ahead, to see entries that came after their certificate's end."""

    def __init__(self) -> None:
        self.key, self.late = _key(), timedelta(0)
        self._leaves = [hashlib.sha256(b"\0another entry %d" % i).digest() for i in range(5)]

    def add(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Log a DSSE envelope, as `POST /api/v1/log/entries` does. Raises InvalidSignature, ValueError."""
        body = base64.b64encode(_canonical_body(proposed["spec"]["proposedContent"])).decode()
        self._leaves.append(hashlib.sha256(b"\0" + base64.b64decode(body)).digest())
        entry = {
            "body": body,
            "integratedTime": int((datetime.now(UTC) + self.late).timestamp()),
            "logID": _key_id(self.key).hex(),
            "logIndex": len(self._leaves) - 1,
        }
        promise = self._sign(rfc8785.dumps(entry))
        proof = self._proof(len(self._leaves) - 1)
        return {self._leaves[-1].hex(): {**entry, "verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}}

    def _proof(self, index: int) -> dict[str, Any]:
        root = _tree(self._leaves)
        note = f"{NAME} - 1\n{len(self._leaves)}\n{base64.b64encode(root).decode()}\n"
        signed = base64.b64encode(_key_id(self.key)[:4] + base64.b64decode(self._sign(note.encode()))).decode()
        return {
            "logIndex": index,
            "rootHash": root.hex(),
            "treeSize": len(self._leaves),
            "hashes": [h.hex() for h in _path(index, self._leaves)],
            "checkpoint": f"{note}\n— {NAME} {signed}\n",
        }

    def _sign(self, data: bytes) -> str:
        return base64.b64encode(self.key.sign(data, ec.ECDSA(hashes.SHA256()))).decode()


class Instance:
    """All of it behind one port. Use as a context manager."""

    def __init__(self, issuer: str = "https://accounts.stand-in.example") -> None:
        self.oidc, self.rekor = Oidc(issuer), Rekor()
        self.fulcio = Fulcio(self.oidc)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def trusted_root(self) -> str:
        """What a verifier needs (JSON)."""
        return json.dumps(self._trusted_root())

    def trust_config(self) -> str:
        """What a signer needs (JSON)."""
        one = [{"url": self.url, "majorApiVersion": 1, "validFor": _since(), "operator": "us"}]
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            **dict.fromkeys(("caUrls", "oidcUrls", "rekorTlogUrls"), one),
            "rekorTlogConfig": {"selector": "ANY"},
        }
        media_type = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        return json.dumps({"mediaType": media_type, "trustedRoot": self._trusted_root(), "signingConfig": signing})

    def _trusted_root(self) -> dict[str, Any]:
        der = self.fulcio.certificate.public_bytes(serialization.Encoding.DER)
        authority = {
            "subject": {"organization": "us", "commonName": "fulcio stand-in"},
            "uri": self.url,
            "certChain": {"certificates": [{"rawBytes": base64.b64encode(der).decode()}]},
            "validFor": _since(),
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log(self.rekor.key)],
            "certificateAuthorities": [authority],
            "ctlogs": [self._log(self.fulcio.log)],
        }

    def _log(self, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
        public = {"rawBytes": base64.b64encode(_der(key)).decode(), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": _since()}
        log_id = {"keyId": base64.b64encode(_key_id(key)).decode()}
        return {"baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": log_id}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, instance: Instance, *args: Any) -> None:
        self._instance = instance
        super().__init__(*args)

    def do_POST(self) -> None:
        routes: dict[str, Callable[[Any], Any]] = {"/api/v2/signingCert": self._certificate, "/api/v1/log/entries": self._entry}
        page = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            status, answer = 201, routes[self.path](page)
        except Exception as e:
            status, answer = 400, {"message": repr(e)}
        self._say(status, answer)

    def _certificate(self, page: Any) -> Any:
        token = self.headers["Authorization"].removeprefix("Bearer ")
        chain = self._instance.fulcio.issue(token, base64.b64decode(page["certificateSigningRequest"]))
        pems = [c.public_bytes(serialization.Encoding.PEM).decode() for c in chain]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": pems}}}

    def _entry(self, page: Any) -> Any:
        return self._instance.rekor.add(page)

    def _say(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _canonical_body(content: dict[str, Any]) -> bytes:
    """What Rekor keeps of an envelope: hashes, signatures and who verifies them; it checks them first."""
    envelope = json.loads(content["envelope"])
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (verifier,) = content["verifiers"]
    key = x509.load_pem_x509_certificate(base64.b64decode(verifier)).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    for one in envelope["signatures"]:
        key.verify(base64.b64decode(one["sig"]), signed, ec.ECDSA(hashes.SHA256()))
    spec = {
        "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(content["envelope"].encode()).hexdigest()},
        "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
        "signatures": [{"signature": one["sig"], "verifier": verifier} for one in envelope["signatures"]],
    }
    return rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})


def _split(count: int) -> int:
    """RFC 6962, 2.1: the largest power of two below the count."""
    return 1 << (count - 1).bit_length() - 1


def _tree(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return hashlib.sha256(b"\1" + _tree(leaves[:k]) + _tree(leaves[k:])).digest()


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*_path(index, leaves[:k]), _tree(leaves[k:])]
    return [*_path(index - k, leaves[k:]), _tree(leaves[:k])]


def _since() -> dict[str, str]:
    return {"start": "2020-01-01T00:00:00Z"}


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(_der(key)).digest()


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates, key_cert_sign=certificates, crl_sign=certificates, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
