"""`python -m spoke_agent` is the `spoke` program; `spoke run` starts its two processes by this name."""

from spoke_agent.cli import main

main()
