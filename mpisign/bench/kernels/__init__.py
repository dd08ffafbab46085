"""``mpisign bench kernels``: the kernels against the limits of the machine, measured in one run."""
