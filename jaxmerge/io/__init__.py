"""Checkpoints in and out: lazy readers, references, the writer."""
