"""The agent of a site: what it holds, serves, tunes, watches and tells."""

import os

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # nobody else's code looks into ours; a start is 20 ms shorter, too
