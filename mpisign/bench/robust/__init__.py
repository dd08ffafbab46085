"""``mpisign bench robust``: robust rules against ByzFL."""
