"""Fitting a whole model from its ONNX file alone, by torch: full or low-rank (LoRA). Needs the `[train]` extra."""

from model_formats.finetune.errors import FitTooLong, NotDifferentiable, TrainMissing
from model_formats.finetune.fit import FitTerms, Method, Sample, fit_file

__all__ = ["FitTerms", "FitTooLong", "Method", "NotDifferentiable", "Sample", "TrainMissing", "fit_file"]
