"""``mpisign bench collectives``: votes beside what others send, over the wires that run here."""
