"""``mpisign bench detox``: a step of DETOX against plain robust rules."""
