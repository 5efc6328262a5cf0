"""The filter database: collect convolution filters from models, store them, query them."""
