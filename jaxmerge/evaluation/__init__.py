"""Evaluation: what models predict on prepared examples, and the figures made of it."""
