"""mpisign predict: seconds of a training step on a cluster, from measured quantities."""
