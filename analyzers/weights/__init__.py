"""Analyzers of weights: what the filters of a model look like."""
