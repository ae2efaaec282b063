"""From one version's file to the next in a tenth of its bytes: `encode` at the hub, `apply` at a spoke, `plan` for which."""
