"""A file for one reader: encrypted to the device's P-256 key, in pieces, so that memory does not grow with the file.

    "SSSEAL1\\n"  65 bytes: the writer's one-time public point  then pieces of at most 64 KiB + 16
    key    = HKDF-SHA256(ECDH(one-time, device), info = "spokeshave sealed v1" + one-time point + device point)
    nonce  = piece number (11 bytes, big endian) + 1 byte: 1 on the last piece, else 0      (AES-256-GCM)

This is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar 2015): pieces cannot be dropped, swapped or cut off unseen.
This gives secrecy only; the signatures inside say who wrote it.
"""

from collections.abc import Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, load_pem_public_key

from model_formats.core.errors import RefusedError
from sync.trust.keys import Key, KeyFileInvalid, pem_of

__all__ = ["MAGIC", "SealBroken", "load_opener", "open_sealed", "seal_stream"]

MAGIC = b"SSSEAL1\n"
PIECE_BYTES = 64 * 1024
_POINT_BYTES = 65
_TAG_BYTES = 16


class SealBroken(RefusedError):
    """An encrypted file that is for another device, was changed, or was cut off."""

    code = "seal_broken"
    hint = "Export the bundle again for this site (`hub bundle export --encrypt`), and copy it whole."


def seal_stream(source: BinaryIO, out: BinaryIO, recipient: Key) -> None:
    """Encrypt all of `source` to a device's public key."""
    public = load_pem_public_key(pem_of(recipient).encode())
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise KeyFileInvalid("a file can only be encrypted to a P-256 device key")
    # A new key for each file, so the nonces below can simply count.
    once = ec.generate_private_key(ec.SECP256R1())
    box = _box(once.exchange(ec.ECDH(), public), _point(once.public_key()), _point(public))
    out.write(MAGIC + _point(once.public_key()))
    piece, number = source.read(PIECE_BYTES), 0
    while True:
        # Read ahead by one, since the last piece is marked in its nonce: a file that is cut off between pieces does not
        # decrypt.
        following = source.read(PIECE_BYTES)
        out.write(box.encrypt(_nonce(number, last=not following), piece, None))
        if not following:
            return
        piece, number = following, number + 1


def open_sealed(source: BinaryIO, private: ec.EllipticCurvePrivateKey) -> Iterator[bytes]:
    """The clear pieces of what `seal_stream` wrote; each is authentic when it is given out. Raises SealBroken."""
    head = source.read(len(MAGIC) + _POINT_BYTES)
    if len(head) != len(MAGIC) + _POINT_BYTES or not head.startswith(MAGIC):
        raise SealBroken("this is not an encrypted file of ours")
    point = head[len(MAGIC) :]
    try:
        once = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as e:
        raise SealBroken("the encrypted file's head is damaged") from e
    box = _box(private.exchange(ec.ECDH(), once), point, _point(private.public_key()))
    piece, number = source.read(PIECE_BYTES + _TAG_BYTES), 0
    while True:
        following = source.read(PIECE_BYTES + _TAG_BYTES)
        try:
            yield box.decrypt(_nonce(number, last=not following), piece, None)
        except InvalidTag as e:
            what = "for another device, or damaged" if number == 0 else "damaged or cut off"
            raise SealBroken(f"the encrypted file is {what} (piece {number})") from e
        if not following:
            return
        piece, number = following, number + 1


def load_opener(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The device's private key, for decryption. Raises KeyFileInvalid."""
    try:
        private = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as e:
        raise KeyFileInvalid(f"not a private key: {e}") from e
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise KeyFileInvalid("the device key is not P-256")
    return private


def _box(shared: bytes, once: bytes, recipient: bytes) -> AESGCM:
    # Both points are bound in, so that the shared secret is good for this sender key and this reader only.
    info = b"spokeshave sealed v1" + once + recipient
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(shared))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
