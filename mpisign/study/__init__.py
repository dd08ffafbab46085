"""``mpisign study``: grids of trainings by simulated or real ranks, their results and pictures."""
