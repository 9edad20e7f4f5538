"""Training: one task is learnt, over several devices, with checkpoints within it."""
