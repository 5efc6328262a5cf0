"""The architectures of the shipped models."""
