"""Streams of tasks: scenarios, and the ways to cut data into them."""
