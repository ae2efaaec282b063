"""Inference over files, without a server."""
