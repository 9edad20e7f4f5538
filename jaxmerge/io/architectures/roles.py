"""What a leaf is for, read from its name and shape: the rules for every family.

`experiments/architecture_table.py` holds these rules against the modules of transformers; where a
family departs from them, the table (`jaxmerge.io.architectures.table`) says so by leaf.

    =============  ============================================================================
    embedding      a row for every token
    head           a row for every token, at the output; its bias too
    position       a table of positions, absolute or relative
    table          another table whose rows are looked up (token types, codebooks), or learned
                   vectors that stand in for tokens (queries, class and mask tokens, latents)
    kernel         the matrix of a dense layer, its heads perhaps an axis of their own
    experts        the kernels of all experts in one array
    router         scores the experts
    convolution    a kernel with axes of space or time
    norm           scale and shift of a normalisation
    statistic      running mean and variance of a batch normalisation
    bias           added to the output of a layer
    buffer         a constant that is never trained, and never merged
    vector         anything else
    =============  ============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

ROLES = ("embedding", "head", "position", "table", "kernel", "experts", "router", "convolution",
         "norm", "statistic", "bias", "buffer", "vector")  # fmt: skip

HEADS = re.compile(
    r"(^|[./_])(lm_head|embed_out|unembed|proj_out|predictions|generator_lm_head|head|output|score)([./_]|$)"
    r"|(^|[./])(decoder|fc_out|logits)[./](weight|kernel|bias)$"
)
SURE_HEADS = re.compile(
    r"(^|[./])((lm_head|embed_out|unembed)[./](weight|kernel|bias)|final_logits_bias)$"
)
TOKENS = re.compile(  # of the leaf's own module: what is inside of it may be a whole tower
    r"((embed_tokens|tok_embeddings|word_embed|token_embed|word_token)\w*|embed_in|wte"
    r"|(^|[./])(tokens?|shared))([./](\d+|base_layer|original_module|modules_to_save[./]\w+))*"
    r"([./](weight|embeddings?))?$"
    r"|(^|[./_])text_embed(dings?)?([./](weight|embeddings?))?$"
)
POSITIONS = re.compile(
    r"(^|[./_])(pos(ition(s|al)?)?|ape)([./_]|$)|attention_biases$|(^|[./_])(pos_?emb(ed)?|position_?embed|wpe|rpe)"
    r"|(^|[./])relative$|embed_positions|relative_attention_bias|rel_pos|rel_embed|relative_position|rel_h|rel_w|pe_layer"
)
TABLES = re.compile(
    r"embed(?!der)|codebook|codevectors|(^|[./_])(wte|wpe|emb|tables?)([./_]|$)"
    r"|(^|[./])(shared([./]|$)|types?$)"
)
LEARNED = re.compile(  # vectors that stand in for tokens, parameters of their own
    r"(^|[./_])(latents?(_\dd)?|quer(y|ies)|prompts?|probe|pointer)$"
    r"|(^|[./])\w+_tokens?([./]tokens?)?$"
)
NORMS = re.compile(
    r"norm|(^|[./_])(ln|bn|gn|grn)(\d|_\w+)?([./_]|$)|(^|[./])(ln|bn)\w*[./](weight|bias|scale)$"
)
BUFFERS = re.compile(
    r"(^|[./_])(inv_freq|position_ids|token_type_ids|masked_bias|num_batches_tracked|causal_mask"
    r"|relative_position_index|cached?_(sin|cos)|(sin|cos)_cached|initialized"
    r"|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?(betas|alphas_cumprod(_prev)?)"
    r"|posterior_\w+)$"
)
STATISTICS = re.compile(r"(^|[./])(running_(mean|var)|batch_stats[./].*)$")
ROUTERS = re.compile(
    r"(^|[./_])(gate|router|wg|classifier)(_weight|[./](layer[./])?(weight|wg|kernel|classifier).*)?$"
)
BIASES = re.compile(r"bias(es)?(_[uv])?$")
SCALES = re.compile(  # of channels, heads or states, in two axes
    r"(^|[./_])(a_log|scales?(_\d)?|gammas?|lambdas?(_\d)?|temperature|alphas?|betas?|decay"
    r"|translate)$|(mamba|ssm|mixer)\w*[./]d$"
)
ATTENTION = re.compile(
    r"att(e?n|ention)|(^|[./_])(sa|mha|q_proj|k_proj|v_proj|o_proj)([./_]|$)", re.I
)
MLP = re.compile(
    r"mlp|(^|[./_])(ffn?|feed_?forward|fc\d?|intermediate|experts?|moe|dense_?relu|wi(_\d)?|wo|w[123]"
    r"|gate_proj|up_proj|down_proj|gate_up_proj|lin[12]|c_fc)([./_]|$)"
    r"|block_sparse_moe|DenseReluDense|dense_h_to_4h|dense_4h_to_h",
    re.I,
)
EXPERTS = re.compile(r"(^|[./_])experts?([./_]|$)")
MIXED = re.compile(r"moe|mlp|ffn?[./_]|feed_?forward")  # where experts lie, whatever their name
LINEAR = re.compile(r"proj|linear|dense|fc|mlp|kernel|conv")  # what multiplies is no table
CONVOLUTIONS = re.compile(r"conv")


def role_of(
    name: str,
    shape: tuple[int, ...],
    *,
    floating: bool = True,
    vocabularies: Collection[int] = (),
    experts: Collection[int] = (),
) -> str:
    """The role of a leaf.

    Args:
        floating: whether its dtype is.
        vocabularies: sizes of vocabulary that the config names; without them names decide.
        experts: numbers of experts that the config names.

    Example:
        >>> role_of("transformer.wte.weight", (50257, 768), vocabularies=[50257])
        'embedding'
        >>> role_of("model.layers.0.mlp.gate.weight", (8, 64), experts=[8])
        'router'
        >>> role_of("vision/block_03/attn/query/kernel", (4, 4))
        'kernel'
    """
    ndim, low = len(shape), name.lower()
    if STATISTICS.search(low):
        return "statistic"
    if (
        not floating
        or BUFFERS.search(low)
        or (ndim == 4 and low.endswith(("attn.bias", "attention.bias")))
    ):
        return "buffer"
    bias = BIASES.search(low) is not None
    if ndim in (1, 2) and shape[0] in vocabularies and not (ndim == 1 and not bias):
        if HEADS.search(low) and not TOKENS.search(low):
            return "head"
        if ndim == 2 and (TOKENS.search(low) or TABLES.search(low)) and not POSITIONS.search(low):
            return "embedding"
        if ndim == 1 and HEADS.search(low):
            return "head"
    if SURE_HEADS.search(low):
        return "head"
    learned = LEARNED.search(low) and not (TOKENS.search(low) and not low.endswith(".token"))
    if ndim >= 2 and learned and not ATTENTION.search(low):
        return "table"
    if ndim == 2 and TOKENS.search(low):
        return "embedding"
    place = POSITIONS.search(low)
    near = place and (ndim == 2 or not bias) and not low.endswith(("bias_u", "bias_v"))
    if place and near and not LINEAR.search(_from(low, place.start())):
        return "position"
    module, flat = _module(low), sum(n > 1 for n in shape) <= 1
    if NORMS.search(module) and (ndim <= 1 or (flat and not LEARNED.search(low))):
        return "norm"
    if ROUTERS.search(low) and ndim == 2 and min(shape) > 1 and set(shape) & set(experts):
        return "router"
    if bias and not (ndim == 2 and "relative" in low):
        return "bias"
    whole = low.endswith(("weight", "kernel"))
    rows = ndim == 2 or (ndim > 2 and not whole)
    if rows and TABLES.search(module) and not LINEAR.search(module):
        return "table"
    if ndim == 2:
        return "vector" if SCALES.search(low) else "kernel"
    if ndim == 3 and not CONVOLUTIONS.search(low):
        if EXPERTS.search(low) or (MIXED.search(low) and shape[0] in experts):
            return "experts"
        if low.endswith("kernel") and ATTENTION.search(low):  # Flax's, heads apart
            return "kernel"
    return "convolution" if ndim >= 3 and whole else "vector"


def vocabularies_by_shape(
    shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str], sizes: Collection[int]
) -> dict[str, str]:
    """What has a row, or a column, for every token, whatever it is called: for no known family.

    The first table without a bias is the embedding, unless one is known by its name.

    Args:
        shapes: of the leaves outside of layers.
        roles: by name and shape, of all leaves.
        sizes: of vocabulary.

    >>> shapes = {"inp": (9, 4), "hidden.weight": (4, 4), "out.weight": (9, 4), "out.bias": (9,)}
    >>> vocabularies_by_shape(shapes, dict.fromkeys(shapes, "kernel"), [9])
    {'inp': 'embedding', 'out.weight': 'head', 'out.bias': 'head'}
    """
    out: dict[str, str] = {}
    for n, shape in shapes.items():
        tokens = [axis for axis, size in enumerate(shape) if size in sizes]
        if roles[n] != "kernel" or len(shape) != 2 or len(tokens) != 1:
            continue
        bias = n[: max(map(n.rfind, "./")) + 1] + "bias"
        biased = shapes.get(bias) == (shape[tokens[0]],)
        first = "embedding" not in {*roles.values(), *out.values()}
        out[n] = "embedding" if first and tokens == [0] and not biased else "head"
        if biased:
            out[bias] = "head"
    return out


def _from(name: str, at: int) -> str:
    """The rest of a name from the segment on that lies there."""
    return name[max(name.rfind(c, 0, at + 1) for c in "./") + 1 :]


def _module(name: str) -> str:
    """The last two segments: the module's own name and the parameter's."""
    return "/".join(re.split(r"[./]", name)[-2:])


def part_of(name: str) -> str:
    """Where in a layer a leaf lies: "attention", "mlp", or "" for anything else.

    >>> part_of("model.layers.0.self_attn.q_proj.weight"), part_of("h.0.mlp.c_fc.weight")
    ('attention', 'mlp')
    """
    if ATTENTION.search(name) and not re.search(r"norm|(^|[./_])ln", name, re.I):
        return "attention"
    if MLP.search(name) and not re.search(r"norm|(^|[./_])ln_?\d?[./]", name, re.I):
        return "mlp"
    return ""


TOWERS = {
    "projector": re.compile(
        r"(?<!vocab_)projector|connector|aligner|(^|[./_])(merger|resampler|mm_\w+|abstractor)"
    ),
    "vision": re.compile(r"vision|visual|(^|[./_])(vpm|image|img|vit)([./_]|$)|image_encoder"),
    "audio": re.compile(r"audio|speech|whisper|(^|[./_])apm([./_]|$)"),
    "encoder": re.compile(r"(^|[./])encoder([./]|$)"),
    "decoder": re.compile(r"(^|[./])decoder([./]|$)"),
}


def tower_of(name: str) -> str:
    """Which part of a model: "vision", "audio", "projector", "encoder", "decoder" or "text".

    >>> tower_of("model.visual.blocks.0.mlp.fc1.weight"), tower_of("model.layers.0.norm.weight")
    ('vision', 'text')
    """
    return next((tower for tower, known in TOWERS.items() if known.search(name)), "text")
