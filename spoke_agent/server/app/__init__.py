"""The processes of the server: its composition, the worker pool, and the control interface."""
