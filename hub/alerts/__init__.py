"""What people are told without asking: drift that alarms, drift that costs accuracy, rollouts that were aborted."""
