"""The rig: our programs on classes of CPU that this machine is not, by qemu's user emulation. `make cpus` runs all of it."""
