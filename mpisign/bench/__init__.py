"""``mpisign bench``: kernels, collectives, training, robust rules and DETOX, measured here."""
