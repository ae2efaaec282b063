"""What should happen, as pure functions over plain values: no clock, disk, network or database in here."""
