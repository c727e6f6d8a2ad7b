"""Depth-wise 3x3 convolution of spikes with channels last: forward, backward, and the weights' gradient from bits."""
