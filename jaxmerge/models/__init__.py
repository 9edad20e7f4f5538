"""Models whose parameters are flat mappings, ported from the originals: `clip` and `bert`.

    transformer   the parts both share, and how a forward pass is carried out (`Compute`)
    tables        checkpoint keys against our names, both directions
    heads         class names as frozen linear heads
    clip, bert    config, modeling, params (their tables), tokens, pictures, checkpoints

Largest differences from the originals, float32 on CPU, random weights with random biases and norms
unless real ones are named:

    model                                  image     text      tolerance
    CLIP, 2 blocks, quick GELU             1.2e-06   1.2e-06   1e-5      transformers
    CLIP, 2 blocks, exact GELU             6.0e-07   1.1e-06   1e-5      transformers
    CLIP, 2 blocks                         4.8e-07   4.8e-07   1e-5      OpenCLIP
    ViT-B/32                               1.9e-06   2.7e-06   1e-4      transformers
    ViT-B/16                               2.4e-06   2.7e-06   1e-4      transformers
    ViT-L/14                               3.1e-06   2.3e-06   1e-4      transformers
    BERT, 2 blocks                                   1.3e-07   1e-5      transformers
    all-MiniLM-L6-v2, real weights                   2.4e-07   1e-5      transformers

The small ones and MiniLM: `pytest tests/test_clip.py tests/test_clip_checkpoints.py
tests/test_bert.py` (golden files, no torch). The large ones, with torch and transformers 5:
`pytest tests/test_clip_parity.py -m parity -s`.
"""
