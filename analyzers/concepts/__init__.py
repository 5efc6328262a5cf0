"""What the network's features are of: parts that many pictures share."""
