"""The weights and cards of the shipped models, made by the scripts in `examples/`."""
