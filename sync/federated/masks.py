"""Pairwise masks: numbers modulo 2^48 that are uniformly random one by one and exact when all of a cohort are added up.

The simple, one-shot form of Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning (CCS 2017),
without their recovery from dropouts: a sum that lacks one share stays shut. Each pair of sites agrees on a secret (X25519), draws
a stream from it (HKDF-SHA256, ChaCha20), and one adds it where the other takes it away. The secret is bound to the digest of the
cohort, so shares made for different cohorts never cancel, not even in part. 2^48, since canonical JSON is exact up to 2^53.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from model_formats.core.types import hex_of
from sync.core.types import SpokeId
from sync.protocol.egress import MASK_BITS

__all__ = ["fresh_secret", "masked", "public_of", "total"]

_MASK = np.uint64((1 << MASK_BITS) - 1)
_HALF = 1 << (MASK_BITS - 1)
_BYTES = MASK_BITS // 8
_INFO = b"spokeshave masked sum v1"


def fresh_secret() -> bytes:
    """A one-time X25519 secret. Used for one answer, then forgotten."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(secret: bytes) -> bytes:
    """Its public half."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def masked(values: Sequence[int], me: SpokeId, secret: bytes, peers: Mapping[SpokeId, bytes], cohort: str) -> tuple[int, ...]:
    """One site's share: `values` (|v| < 2^47) with a mask for every peer (public keys, without mine). `cohort` is its digest.

    Raises ValueError on a peer's key of low order.
    """
    own = X25519PrivateKey.from_private_bytes(secret)
    # Unsigned arithmetic wraps at 2^64, of which 2^48 is a divisor: masks cancel exactly, and negative values come back.
    share = np.array(values, np.int64).view(np.uint64)
    for peer, public in peers.items():
        shared = own.exchange(X25519PublicKey.from_public_bytes(public))
        stream = _stream(shared, cohort, len(values))
        # Both ends of a pair order the two names alike, so one adds what the other takes away.
        share = share + stream if me < peer else share - stream
    return tuple(int(v) for v in share & _MASK)


def total(shares: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The sum of all shares of one cohort, with its sign back. One share short it is uniformly random."""
    summed = np.array(list(shares), np.uint64).sum(axis=0, dtype=np.uint64) & _MASK
    return tuple(int(v) - (1 << MASK_BITS if int(v) >= _HALF else 0) for v in summed)


def _stream(shared: bytes, cohort: str, length: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    key = HKDF(SHA256(), 32, bytes.fromhex(hex_of(cohort)), _INFO).derive(shared)
    # A zero nonce is right here: the key is bound to one cohort and used for one stream.
    drawn = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(_BYTES * length))
    wide = np.zeros((length, 8), np.uint8)
    wide[:, :_BYTES] = np.frombuffer(drawn, np.uint8).reshape(length, _BYTES)
    return wide.view("<u8").reshape(length).astype(np.uint64)
