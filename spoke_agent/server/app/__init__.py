"""The processes of the server: what is put together, the worker pool, and the control interface."""
