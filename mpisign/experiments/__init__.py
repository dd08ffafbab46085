"""Trainings on real or simulated ranks: ``mpisign train``, ``mpisign study``, their reports."""
