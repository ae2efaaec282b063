"""The agent process: what runs beside the serving process, talks to the hub, and carries out updates."""
