"""Pictures made from a model: what its units look for, and what its layers keep of a picture."""
