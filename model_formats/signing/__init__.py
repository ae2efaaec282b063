"""Signatures over packages: statement, signature, publisher policy, Sigstore."""
