"""Models whose parameters are flat mappings: ports of the originals, and what streams train.

    transformer   the parts of transformers, and how a forward pass is carried out (`Compute`)
    packing       sentences without their padding
    folders       what is written beside the weights, and how
    tokens        what the tokenizers of all models share
    heads         class names as frozen linear heads
    attention     the attention of all transformers: shared heads, rotations, windows, caches
    decoder       language models: Llama, Mistral, Qwen, Gemma, Phi-3, Mixtral
    clip, bert    config, modeling, params (their tables), tokens, pictures, checkpoints
    convolution   dense layers, convolutions, batch norm, and the inputs of kernels as rows
    mlp, resnet   the perceptron of permuted MNIST, ResNet-18; `learner`: models of streams
    alexnet       the small AlexNet of GPM and its relatives
    trained_head  linear, cosine and sigmoid heads on any tower

How near they are to transformers and OpenCLIP (every block, features, bfloat16, and checkpoints
that come back bit for bit): experiments/results/parity.md, made by experiments/bench/parity.py.
Small models and the real all-MiniLM-L6-v2 are held to golden files that torch made
(tests/golden/clip_*, open_clip*, bert_small, minilm.safetensors), so the tests need no torch.
"""
