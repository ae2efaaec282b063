"""Errors of local data."""

from model_formats.core.errors import DeviceError, OperatorError

__all__ = ["BatchInvalid", "DataKeyLost", "LabelRefused", "SiteKeyInvalid", "SiteKeyUnavailable", "StoreDamaged"]


class DataKeyLost(DeviceError):
    """Encrypted rows exist, but the key that reads them does not, or is another one."""

    code = "data_key_lost"
    hint = "Restore the site key from the site's own backup, or start again with `spoke data erase --all`."


class SiteKeyUnavailable(DeviceError):
    """The site key is kept elsewhere (a token, a credential), and that cannot be reached now. Nothing is lost."""

    code = "site_key_unavailable"
    retryable = True
    hint = "Plug the token in, correct its PIN, or start the service that holds the credential; until then no rows are kept."


class SiteKeyInvalid(OperatorError):
    """The setting `site_key` cannot be understood."""

    code = "site_key_invalid"
    hint = "Write `file`, `credential:NAME` or `pkcs11:token=...;object=...?module-path=...&pin-source=file:...`."


class StoreDamaged(DeviceError):
    """A stored batch does not decrypt: it was changed on disk."""

    code = "data_damaged"
    hint = "Erase the damaged rows with `spoke data erase --before TIME`; the model itself is not affected."


class BatchInvalid(OperatorError):
    """Rows that do not fit together: lengths differ, or an array has no row dimension."""

    code = "data_batch_invalid"
    http = 400
    hint = "Every input, output and time needs one entry per row."


class LabelRefused(OperatorError):
    """A label that cannot belong to the request."""

    code = "label_refused"
    http = 400
    hint = "Send one whole number per row of the request: the position of the class in the contract."
