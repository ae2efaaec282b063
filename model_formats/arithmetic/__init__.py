"""Evaluates a graph in float64 with exact integer sums, without an engine. Golden vectors and INT8 ranges come from here."""

from model_formats.arithmetic.evaluator import Evaluator, NotEvaluable

__all__ = ["Evaluator", "NotEvaluable"]
