"""What a decoder looks like: transformers' config.json, read through the table of families."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxmerge.errors import closest
from jaxmerge.io.architectures.defaults import rms_eps, rope_theta
from jaxmerge.models.decoder.families import FAMILIES, SILENT, Family, Key
from jaxmerge.models.decoder.rope import Rope
from jaxmerge.models.transformer import ACTIVATIONS

EVERYTHING = 1 << 30  # a window that nothing is outside of


@dataclass(frozen=True)
class Mixture:
    """A layer's experts.

    Attributes:
      count, chosen, hidden: experts, those that a token uses, their width.
      normalise: whether the weights of the chosen ones sum to one.
      shared: width of the expert that all tokens use besides; 0 without one.
      layers: which layers have experts.
    """

    count: int
    chosen: int
    hidden: int
    normalise: bool
    shared: int
    layers: tuple[bool, ...]


@dataclass(frozen=True)
class Config:
    """A decoder's architecture; made by `Config.from_hf`.

    Attributes:
      family: `model_type`, a key of `FAMILIES`.
      vocab, width, layers, heads, kv_heads, depth, hidden: sizes; depth is the width of a head.
      activation, eps: of the MLP and of every norm.
      context: positions that the model was made for.
      tied: the head is the embedding.
      bias, out_bias, mlp_bias, qk_norm, norm_offset, out_norms, embed_scale: see `Family`.
      score_scale: scores are multiplied by it.
      score_cap, logit_cap: soft caps, None without.
      windows: how far back each layer looks, the token itself counted.
      ropes: the rotations that occur.
      rope: which of them each layer uses.
      experts: of a mixture of experts.
      std: deviation of random weights.
      hf: config.json as it was read.
    """

    family: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    depth: int
    hidden: int
    activation: str
    eps: float
    context: int
    tied: bool
    bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    norm_offset: float
    out_norms: bool
    embed_scale: float
    score_scale: float
    score_cap: float | None
    logit_cap: float | None
    windows: tuple[int, ...]
    ropes: tuple[Rope, ...]
    rope: tuple[int, ...]
    experts: Mixture | None
    std: float
    hf: str = field(compare=False, repr=False)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """Reads a config.json, of transformers 4 or 5.

        Raises:
          ValueError: an unknown family (the known ones are named), entries of wrong kinds or that
            contradict each other, all at once.

        >>> config = Config.from_hf({"model_type": "llama", "num_hidden_layers": 2})
        >>> config.width, config.heads, config.windows[0] == EVERYTHING
        (4096, 32, True)
        """
        family = family_of(config)
        settings = {"rms_norm_eps": rms_eps(config["model_type"]), **family.defaults, **config}
        _refuse(settings)
        say = lambda value: value.of(settings) if isinstance(value, Key) else value
        heads, width, layers = (
            settings[f"num_{n}"] if n != "hidden_size" else settings[n]
            for n in ("attention_heads", "hidden_size", "hidden_layers")
        )
        depth = settings.get("head_dim") or width // heads
        score_width = say(family.score_width) if family.score_width else depth
        windows, local = _windows(family, settings)
        ropes = _ropes(family, settings, depth, local)
        kinds = tuple(dict.fromkeys(ropes))
        return cls(
            family=settings["model_type"],
            vocab=settings["vocab_size"],
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=settings.get("num_key_value_heads") or heads,
            depth=depth,
            hidden=settings["intermediate_size"],
            activation=settings.get("hidden_activation") or settings["hidden_act"],
            eps=float(settings["rms_norm_eps"]),
            context=settings["max_position_embeddings"],
            tied=bool(settings["tie_word_embeddings"]),
            bias=bool(say(family.bias)),
            out_bias=bool(say(family.out_bias)),
            mlp_bias=bool(say(family.mlp_bias)),
            qk_norm=family.qk_norm,
            norm_offset=family.norm_offset,
            out_norms=family.out_norms,
            embed_scale=width**0.5 if family.embed_scaled else 1.0,
            score_scale=score_width**-0.5,
            score_cap=say(family.score_cap),
            logit_cap=say(family.logit_cap),
            windows=windows,
            ropes=kinds,
            rope=tuple(kinds.index(rope) for rope in ropes),
            experts=_experts(family, settings, layers),
            std=float(settings["initializer_range"]),
            hf=json.dumps(dict(config), sort_keys=True),
        )

    def __post_init__(self):
        wrong = []
        if self.heads % self.kv_heads:
            wrong.append(f"{self.heads} heads of queries over {self.kv_heads} of keys")
        if self.activation not in ACTIVATIONS:
            wrong.append(f"activation {self.activation!r}, expected one of {_known(ACTIVATIONS)}")
        if self.experts and not 0 < self.experts.chosen <= self.experts.count:
            wrong.append(f"{self.experts.chosen} of {self.experts.count} experts chosen")
        if wrong:
            raise ValueError(f"config.json ({self.family}): {'; '.join(wrong)}")

    def to_hf(self) -> dict[str, Any]:
        """The config.json with which transformers builds the same architecture."""
        settings = json.loads(self.hf)
        return {"architectures": [FAMILIES[self.family].architecture], **settings}

    def edit(self, **entries: Any) -> Config:
        """Another config with other entries of config.json, as `vocab_size=...`."""
        return Config.from_hf({**json.loads(self.hf), **entries})


def _known(names) -> str:
    return ", ".join(sorted(names))


def family_of(config: Mapping[str, Any]) -> Family:
    """The row of the table that a config.json asks for.

    Raises:
      ValueError: there is none; says which there are and what this config has that none knows.
    """
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    known = f"expected a decoder of {_known(FAMILIES)}"
    if kind is None:
        raise ValueError(f"config.json: found no model_type, {known}")
    hint = closest(str(kind), FAMILIES)
    hint = f" ({hint})" if hint.startswith("did you mean") else ""
    if "text_config" in config:
        inner = config["text_config"].get("model_type", "?")
        raise ValueError(
            f"config.json: found model_type {kind!r}, a model of text and more; {known}. Its text "
            f"part is {inner!r}: save that alone"
        )
    read = set().union(*(row.defaults for row in FAMILIES.values())) | _READ | SILENT
    strange = sorted(set(config) - read)
    differs = f"; no known family has {', '.join(map(repr, strange[:8]))}" if strange else ""
    raise ValueError(f"config.json: found model_type {kind!r}{hint}, {known}{differs}")


_KEYS = [v for row in FAMILIES.values() for v in vars(row).values()]
_KEYS += [v for row in FAMILIES.values() if row.experts for v in vars(row.experts).values()]
_READ = {key.name for key in _KEYS if isinstance(key, Key)} | {
    *("head_dim", "num_key_value_heads", "layer_types", "sliding_window_pattern"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq"),
    *("partial_rotary_factor", "hidden_activation"),
}

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip


# More than any decoder has: each layer and each expert is built, so that a number alone could fill
# the memory before a weight is read.
MOST_LAYERS, MOST_EXPERTS = 4096, 16384
_COUNTS = ("num_experts", "num_local_experts")


def _refuse(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for entries that no decoder can have."""
    wrong = [
        f"{name} is {settings.get(name)!r}, expected a whole number above 0"
        for name in (*_SIZES, "num_key_value_heads", "head_dim")
        if (name in _SIZES or settings.get(name) is not None)
        and not (type(settings.get(name)) is int and 0 < settings[name] < 1 << 31)
    ]
    most = {"num_hidden_layers": MOST_LAYERS, **dict.fromkeys(_COUNTS, MOST_EXPERTS)}
    wrong += [
        f"{name} is {settings[name]:,}, expected at most {limit:,}"
        for name, limit in most.items()
        if type(settings.get(name)) is int and settings[name] > limit
    ]
    wrong += [
        f"{name} is {settings.get(name)!r:.60}, expected a finite number"
        for name in ("rms_norm_eps", "initializer_range")
        if not (isinstance(settings.get(name), int | float) and math.isfinite(settings[name]))
    ]
    if settings.get("use_bidirectional_attention"):
        wrong.append("use_bidirectional_attention is set, expected a causal decoder")
    if not wrong and not settings.get("head_dim"):
        width, heads = settings["hidden_size"], settings["num_attention_heads"]
        if width % heads:
            wrong.append(f"hidden_size {width} is no multiple of {heads} heads")
    if wrong:
        raise ValueError(f"config.json ({settings['model_type']}): {'; '.join(wrong)}")


def _windows(family: Family, settings: Mapping) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """How far back each layer looks, and which layers are windowed."""
    layers, window = settings["num_hidden_layers"], settings.get("sliding_window")
    listed = settings.get("layer_types") if family.listed else None
    if listed is not None:
        if len(listed) != layers or set(listed) - {"sliding_attention", "full_attention"}:
            raise ValueError(
                f"config.json ({settings['model_type']}): layer_types has {len(listed)} entries "
                f"({_known(set(map(str, listed)))}), expected {layers} of full_attention and "
                "sliding_attention"
            )
        local = tuple(kind == "sliding_attention" for kind in listed)
    else:
        local = tuple(family.windowed(settings, layer) for layer in range(layers))
    if not window or not settings.get("use_sliding_window", True):
        return (EVERYTHING,) * layers, local
    return tuple(window if w else EVERYTHING for w in local), local


def _ropes(family: Family, settings: Mapping, depth: int, local: tuple[bool, ...]) -> list[Rope]:
    """The rotation of each layer."""
    theta = settings.get("rope_theta", rope_theta(settings["model_type"]))
    defaults = {"rope_theta": theta}
    if "partial_rotary_factor" in settings:
        defaults["partial_rotary_factor"] = settings["partial_rotary_factor"]
    scaling = settings.get("rope_scaling") or {}
    given = settings.get("rope_parameters") or {}
    full, near = {**defaults, **(given or scaling)}, {**defaults, **(given or scaling)}
    if family.local_theta is not None:
        near = {**defaults, "rope_theta": settings.get("rope_local_base_freq", family.local_theta)}
    if "full_attention" in given or "sliding_attention" in given:
        full = {**defaults, **(given.get("full_attention") or {})}
        near = {**near, **(given.get("sliding_attention") or {})}
        full |= scaling
    context = settings["max_position_embeddings"]
    original = settings.get("original_max_position_embeddings")
    try:
        far, close = (Rope.from_hf(x, depth, context, original) for x in (full, near))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"config.json ({settings['model_type']}): {error}") from None
    return [close if w and family.local_theta is not None else far for w in local]


def _experts(family: Family, settings: Mapping, layers: int) -> Mixture | None:
    if family.experts is None:
        return None
    row = family.experts
    say = lambda value: value.of(settings) if isinstance(value, Key) else value
    step, dense = settings.get("decoder_sparse_step", 1), settings.get("mlp_only_layers") or []
    where = tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))
    return Mixture(
        say(row.count), say(row.chosen), say(row.hidden), bool(say(row.normalise)),
        say(row.shared) or 0, where if say(row.count) else (False,) * layers,
    )  # fmt: skip
