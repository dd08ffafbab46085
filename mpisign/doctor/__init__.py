"""What this machine has, what works, and what is missing: ``mpisign doctor``."""
