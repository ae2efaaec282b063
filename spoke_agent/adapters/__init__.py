"""Site adapters: the store they lie in, the fit of a head, and the gate that a new one must pass."""
