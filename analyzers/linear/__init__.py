"""The network as the linear system that it is for one input."""
