"""Why a model was not adapted."""

from model_formats.core.errors import OperatorError, RefusedError

__all__ = ["AdapterUnknown", "GateClosed", "NotAdaptable", "TooFewLabels"]


class NotAdaptable(RefusedError):
    """The package has no adapter point, or its author forbids learning at a site."""

    code = "not_adaptable"
    http = 409
    hint = "Ask the model's author for a version with an adapter point; this one serves as it is."


class TooFewLabels(OperatorError):
    """Not enough labelled rows that can teach anything."""

    code = "too_few_labels"
    hint = (
        "Send labels to the feedback endpoint, or `spoke data import` them; at least 40 different rows of two classes are needed."
    )


class GateClosed(RefusedError):
    """The fitted head is not surely better here, or forgets too much of what the hub taught. What was served goes on."""

    code = "tune_gate_closed"
    http = 409
    hint = "More labelled rows help most; if the rows are right, ask the hub for a better base model."


class AdapterUnknown(OperatorError):
    """No adapter of that name is here, or it was fitted on another model file."""

    code = "adapter_unknown"
    http = 404
    hint = "`spoke adapter list` shows what there is and which base each belongs to."
