"""What a graph says, free of any engine's kernels: float64, exact integer sums. Golden vectors and INT8 ranges come from here."""

from model_formats.arithmetic.evaluator import Evaluator, NotEvaluable

__all__ = ["Evaluator", "NotEvaluable"]
