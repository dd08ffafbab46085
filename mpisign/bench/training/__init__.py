"""``mpisign bench training``: whole training steps, mpisign beside peers, over real links."""
