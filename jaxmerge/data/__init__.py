"""Data sources: labelled examples by position, with class names, prompts and fixed splits."""
