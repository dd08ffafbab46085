"""A model's gradients from the backward pass to the optimizer, shared by all front ends."""
