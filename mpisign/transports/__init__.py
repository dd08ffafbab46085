"""Wires: one file each over the interface in ``base``."""
