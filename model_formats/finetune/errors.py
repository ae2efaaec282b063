"""Why a whole model could not be fitted."""

from model_formats.core.errors import OperatorError, RefusedError

__all__ = ["FitTooLong", "NotDifferentiable", "TrainMissing"]


class TrainMissing(OperatorError):
    """Fitting more than the head needs torch and onnx, and they are not installed here."""

    code = "train_missing"
    hint = "pip install 'spokeshave[train]' at this site, or fit the head alone: `spoke tune --method head`."


class NotDifferentiable(RefusedError):
    """The model's graph has an operator that cannot be fitted, or torch does not give what the engine gives."""

    code = "not_differentiable"
    http = 409
    hint = "Fit the head alone: `spoke tune --method head`."


class FitTooLong(OperatorError):
    """The time allowed is over before the fit was."""

    code = "fit_too_long"
    hint = "Allow more (`--minutes`), or use `--method lora` or `head`. Nothing was changed; the next try starts afresh."
