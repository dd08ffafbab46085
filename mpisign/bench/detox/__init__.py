"""``mpisign bench detox``: a step of DETOX beside plain robust rules, as ranks become more."""
