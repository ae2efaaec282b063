"""Deployment files from templates: systemd units and Compose."""
