"""What can be wrong with local data."""

from model_formats.errors import DeviceError, OperatorError

__all__ = ["BatchInvalid", "DataKeyLost", "LabelRefused", "StoreDamaged"]


class DataKeyLost(DeviceError):
    """Encrypted rows exist, but the key that reads them does not, or is another one."""

    code = "data_key_lost"
    hint = "Restore identity/site.key from the site's own backup, or start again with `spoke data erase --all`."


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
