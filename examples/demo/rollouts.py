"""The rollout documents of the story, as an operator would write them."""

GOOD = """\
apiVersion: spokeshave/v1
kind: Rollout
metadata: {name: digits-1}
spec:
  model: digits@1
  transport: mqtt
  rings:
    - {name: canary, sites: [dubai]}
    - {name: rest, sites: [frankfurt]}
  gate: {min_committed: 1, wilson_lower: 0.2, soak_s: 1}
  probation: {soak_s: 2, min_requests: 20, max_wait_s: 30}
"""

BAD = """\
apiVersion: spokeshave/v1
kind: Rollout
metadata: {name: digits-2}
spec:
  model: digits@2
  transport: mqtt
  rings:
    - {name: canary, sites: [dubai]}
    - {name: rest, sites: [frankfurt]}
  gate: {min_committed: 1, wilson_lower: 0.2, soak_s: 1, max_accuracy_drop: 0.02}
  # A new version may well disagree with the old one where the old one is wrong, so shadow alone does not condemn it ...
  shadow: {min_rows: 60, max_wait_s: 30, max_disagreement: 0.6}
  # ... labelled rows do.
  probation: {soak_s: 20, min_labelled: 120, max_wait_s: 60, accuracy_slack: 0.02}
"""

PICTURES = """\
apiVersion: spokeshave/v1
kind: Rollout
metadata: {{name: {name}}}
spec:
  model: digits@3
  transport: mqtt
  rings:
    - {{name: all, sites: [{site}]}}
  gate: {{min_committed: {spokes}, wilson_lower: 0.2, soak_s: 0}}
  probation: {{soak_s: 1}}
"""
