"""Where in this image the network saw what it says."""
