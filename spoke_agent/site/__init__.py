"""The configuration and files of a site: home folder, settings, slots, time windows."""
