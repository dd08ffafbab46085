"""What ``mpisign train`` is made of: data, models, ways to train, measurements, reports."""
