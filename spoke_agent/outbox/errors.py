"""Errors of the outbox."""

from model_formats.core.errors import DeviceError, OperatorError

__all__ = ["LogBroken", "LogUnwritable", "PolicyInvalid"]


class PolicyInvalid(OperatorError):
    """The site's policy file cannot be read, or contradicts itself. Until it is mended nothing leaves."""

    code = "egress_policy_invalid"
    hint = "Correct egress.yaml in the spoke's home; `spoke egress policy` shows what is in force. Nothing leaves meanwhile."


class LogBroken(DeviceError):
    """The log of what left does not hang together: an entry was changed, removed or put in."""

    code = "egress_log_broken"
    hint = "Keep egress.db as it is for the inquiry; compare it with the hub's records."


class LogUnwritable(DeviceError):
    """The log of what left cannot be written or read (a full disk, most often). What is not in the log does not leave."""

    code = "egress_log_unwritable"
    hint = "Make room on the spoke's disk. Nothing leaves meanwhile, and what waited leaves by itself afterwards."
    retryable = True
