"""``mpisign bench training``: whole training steps, ours beside others, over real links."""
