"""Collectives over any transport: generators that yield the exchanges they wait for."""
