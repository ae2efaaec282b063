"""Quantizes fp32 to INT8: one recipe per file, one accuracy gate for all. The head that sites adapt stays in float."""
