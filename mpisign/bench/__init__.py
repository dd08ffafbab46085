"""``mpisign bench``: the kernels against the limits of the machine, measured in one run."""
