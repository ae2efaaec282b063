"""Why a transfer ended without a blob. What arrived stays on disk, and the next try goes on from it."""

from model_formats.core.errors import HubError
from sync.core.types import Reason

__all__ = ["BlobGone", "TransferCancelled", "TransferFailed", "TransferStalled"]


class TransferFailed(HubError):
    """A blob did not come."""

    code = "transfer_failed"
    hint = "It is tried again by itself, from where it stopped."
    reason = Reason.TRANSFER_FAILED


class TransferCancelled(TransferFailed):
    """Somebody here stopped it: a newer directive, or the end of the program."""

    code = "transfer_cancelled"
    reason = Reason.CANCELLED


class TransferStalled(TransferFailed):
    """Nothing new arrived for too long although the line was up."""

    code = "transfer_stalled"
    hint = "Does the hub hold the blob, and may it go to this zone? `hub doctor` tells. It is tried again later."
    reason = Reason.TIMEOUT


class BlobGone(TransferFailed):
    """The hub says that it does not have the blob, or that this spoke may not have it. Asking again at once is no use."""

    code = "blob_gone"
    retryable = False
    hint = "The release may have been withdrawn; the next directive settles it."
