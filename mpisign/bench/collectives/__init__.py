"""``mpisign bench collectives``: votes beside peers, over every library that runs here."""
