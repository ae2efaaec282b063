import os

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
"""No other package may hook into how documents are checked; and looking for such plugins costs every start 20 ms or more."""
