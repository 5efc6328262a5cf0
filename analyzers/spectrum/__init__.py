"""Analyzers of kind spectrum: the frequencies of pictures, of kernels and of a model's errors."""
