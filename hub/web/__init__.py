"""One page for people: the fleet, the rollouts, the last alarms. Read-only; everything else is done by commands."""
