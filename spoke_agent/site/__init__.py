"""What a site is configured with and where its files lie: home folder, settings, slots, time windows."""
