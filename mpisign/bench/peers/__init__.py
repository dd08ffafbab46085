"""Other implementations that benches measure beside mpisign: one file a peer."""
