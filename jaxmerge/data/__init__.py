"""Data sources: labelled examples by position, with class names, prompts and fixed splits.

`sources` has the interface, `folders`, `tfds`, `npz`, `text` and `digits` read what lies on disk,
`registry` finds the papers' data sets by name, `pipeline` prepares batches ahead.
"""
