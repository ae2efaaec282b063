"""From fp32 to INT8: one recipe a file, one gate for all. The head that sites adapt always stays in float."""
