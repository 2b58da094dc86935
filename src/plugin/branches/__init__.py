"""Weakened copies of the model as extra rows of its own pass, and what decoders are made of."""
