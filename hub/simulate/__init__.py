"""Run a rollout's own rule on virtual spokes before it touches a real one."""
