"""Distributions, two-sample tests, reference profiles, calibration and accuracy estimates; numpy only."""
