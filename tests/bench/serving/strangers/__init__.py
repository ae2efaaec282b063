"""Model servers that bring their own environment: MLServer and LitServe, with the same model, one thread and one process. Each
program here runs in that environment, `PYTHON FILE PORT MODEL`, and is written as its authors' guide shows first.
"""
