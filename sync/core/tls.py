"""Mutual TLS between hub and spoke: which files, and the one client context for MQTT and HTTPS."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from model_formats.core.errors import OperatorError

__all__ = ["TlsFiles", "TlsFilesMissing", "client_context", "https_context"]

_RECORD_BYTES = 16 * 1024
"""Most bytes of a TLS record (RFC 8446, section 5.1)."""
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python's ssl has no name for


class TlsFilesMissing(OperatorError):
    """A key or certificate is not there, or cannot be read."""

    code = "tls_files_missing"
    hint = "Enrol this machine again, or give it back its identity folder from a backup."


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one end: the device CA, and its own certificate and key."""

    ca: Path
    certificate: Path
    key: Path


def client_context(tls: TlsFiles) -> ssl.SSLContext:
    """Trusts the one device CA, shows the own certificate, checks the host name, TLS 1.2 or newer.

    It does not compare the server's dates with this machine's clock: the clock of a spoke may be wrong by years, and freshness is
    the business of the TUF metadata that comes through. The server does check the spoke's dates.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as e:
        raise TlsFilesMissing(f"cannot read {tls.ca}, {tls.certificate} or {tls.key}: {e}") from e
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return context


def https_context(tls: TlsFiles) -> ssl.SSLContext:
    """As `client_context`, for clients that bring large bodies."""
    context = client_context(tls)
    context.sslsocket_class = _Gathering
    return context


class _Gathering(ssl.SSLSocket):
    """Gives all that has arrived, up to what was asked for: OpenSSL gives one record (16 KiB) a call, and to hand a record up
    through an HTTP client costs more than to decrypt it.
    """

    _broken: OSError | None = None
    """Met behind what was still whole, and told by the next call."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        if self._broken is not None:
            raise self._broken
        first = super().recv(buflen, flags)
        if len(first) < _RECORD_BYTES or flags:
            return first
        pieces, room, timeout = [first], buflen - len(first), self.gettimeout()
        self.settimeout(0)
        try:
            while room > 0 and (piece := super().recv(room)):
                pieces.append(piece)
                room -= len(piece)
        except ssl.SSLWantReadError:
            pass  # no more is here yet
        except OSError as e:
            self._broken = e
        finally:
            self.settimeout(timeout)
        return b"".join(pieces)
