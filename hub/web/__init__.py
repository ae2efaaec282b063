"""One page for people who walk by: the fleet, the rollouts, the last alarms. Read-only; everything else is the command line's."""
