"""A model's gradients, from the backward pass to the optimizer: what all front ends share."""
