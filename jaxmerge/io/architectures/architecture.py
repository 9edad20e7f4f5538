"""One model taken apart: `architecture(source)`, and what can be asked of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.io.architectures import configs, orientation, table, ties
from jaxmerge.io.architectures.names import (
    alike,
    ends_alike,
    numbers,
    renamed,
    segments,
    template,
)
from jaxmerge.io.architectures.roles import part_of, role_of, tower_of, vocabularies_by_shape
from jaxmerge.io.architectures.stacks import LAYER, Place, Stack, find_stacks, place_of


class Architecture:
    """What a model is made of.

    Attributes:
        like: its leaves with shapes and dtypes.
        config: config.json.
        family: ``model_type``, or "" where the config names none.
        known: what the tables say of the family, or None: then names, shapes and config decide.
        stacks: its stacks of layers.
        vocabularies: sizes of vocabulary, by the path of their key in the config.
    """

    def __init__(self, like: Mapping[str, Any], config: Mapping[str, Any]):
        self.like, self.config = like, config
        family = config.get("model_type")
        self.family = family if isinstance(family, str) else ""
        self.known = table.known(self.family) if self.family else None
        sizes = configs.numbers_at(config, configs.VOCABULARIES)
        self.vocabularies = {p: v for p, v in sizes.items() if v > 0}
        self._unlisted = configs.numbers_at(config, configs.UNLISTED)
        self._experts = set(configs.numbers_at(config, configs.EXPERTS).values())
        self._shapes = {n: tuple(x.shape) for n, x in like.items()}
        self._names = set(like)
        self._facts = self.known or table.Known()

    # ------------------------------------------------------------ layers

    @functools.cached_property
    def _stacks(self) -> dict[str, Stack]:
        here = {c.container for n in self.like for c in numbers(n)}
        match = {c: self._nearest(c, self._facts.stacks) for c in here}
        layers = {
            c for c, known in match.items() if known and (c == known or c not in self._facts.others)
        }
        if len({match[c] for c in layers}) < len(layers):  # two containers for one known stack
            layers = {c for c in layers if c == match[c]} or layers
        other = lambda c: (
            self._nearest(c, self._facts.others) or (self.known and not LAYER.search(c))
        )
        others = {c for c in here if c not in layers and other(c)}
        if self.known:  # what lies in them was never judged
            inside = lambda c: any(c.startswith((f"{o}.*", f"{o}/*")) for o in others)
            others |= {c for c in here if c not in layers and inside(c)}
        stacks = find_stacks(self._shapes, layers, others)
        return {s.path: self._counted(s, match.get(s.path)) for s in stacks}

    def _nearest(self, container: str, known: Mapping[str, Any] | Sequence[str]) -> str | None:
        """The known container that shares most segments with this one, if it is one only."""
        last = segments(container)[-1]
        scores = {k: alike(container, k) for k in known if segments(k)[-1] == last}
        best = [k for k, v in scores.items() if v == max(scores.values())]
        return best[0] if len(best) == 1 else None

    def _counted(self, stack: Stack, known: str | None) -> Stack:
        path = tuple(
            int(p) if p.isdigit() else p
            for p in (self._facts.stacks.get(known or "") or "").split(".")
            if p
        )
        tower = tower_of(stack.path)
        near = lambda p: sum(tower_of(str(key).replace("_", ".")) == tower for key in p)
        path = configs.count_path(self.config, path, stack.layers, near)
        count = configs.get(self.config, path) if path else None
        more = configs.further(self.config)
        if stack.stages or type(count) is not int or not more or count != stack.layers - more:
            return stack._replace(count=path)
        return stack._replace(count=path, order=stack.order[:count], extra=stack.order[count:])

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of layers, by path."""
        return tuple(self._stacks.values())

    def layer(self, name: str) -> Place | None:
        """The stack and the layer in which a leaf lies, or None."""
        return self._places[name] if name in self._names else place_of(name, self._stacks)

    @functools.cached_property
    def _places(self) -> dict[str, Place | None]:
        return {n: place_of(n, self._stacks) for n in self.like}

    def depth(self, name: str) -> float:
        """In [0, 1]: where in its stack a leaf lies; 0 outside of all layers."""
        place = self.layer(name)
        return 0.0 if place is None else place.depth

    def main(self, inside: Callable[[str], bool] = lambda name: True) -> list[Stack]:
        """The stacks that slices move: the language model's, or all where it has no such part.

        Args:
            inside: whether a leaf belongs to the part of the model in question.
        """
        here = {p.stack.path for n, p in self._places.items() if p and inside(n)}
        stacks = [s for s in self.stacks if s.path in here]
        text = [s for s in stacks if tower_of(s.path) not in ("vision", "audio", "projector")]
        counted = [s for s in text or stacks if s.count]
        return counted or text or stacks

    def together(self, stack: Stack) -> tuple[Stack, ...]:
        """The stacks that move with this one, itself among them: one key counts all their layers.

        XLM has its attentions, its feed-forward parts and their norms in four lists.
        """
        known = self._facts.stacks
        key = lambda s: (known.get(self._nearest(s.path, known) or ""), s.count)
        own = key(stack)
        return tuple(s for s in self.stacks if s == stack or (own[0] and key(s) == own))

    def grows(self) -> list[str]:
        """Leaves outside of the layers whose shape depends on how many layers there are."""
        known = self._facts.grows
        return [n for n in self.like if any(ends_alike(template(n), k) for k in known)]

    def kind(self, stack: Stack, layer: int) -> tuple:
        """What the config's periods make of a layer: equal for layers made of the same leaves."""
        return configs.kind_of(configs.get(self.config, stack.count[:-1], {}), layer)

    def listed(self, stack: Stack) -> bool:
        """Whether the config says of every layer what it is made of."""
        if any((*stack.count[:-1], k) in self._unlisted for k in configs.UNLISTED):
            return False
        return bool(
            configs.by_layer(self.config, stack.count, stack.layers)
            or configs.of_layers(self.config, stack.count, stack.layers)
        )

    # ------------------------------------------------------------ roles

    def role(self, name: str) -> str:
        """What a leaf is for, one of `ROLES`."""
        return self._roles[name]

    @functools.cached_property
    def _roles(self) -> dict[str, str]:
        sizes = set(self.vocabularies.values())
        by_rules = lambda n, x: role_of(
            n, self._shapes[n], floating=_floating(x), vocabularies=sizes, experts=self._experts
        )
        out = {n: self._special(n) or by_rules(n, x) for n, x in self.like.items()}
        if self.known is None and sizes:
            outside = {n: s for n, s in self._shapes.items() if self.layer(n) is None}
            out |= vocabularies_by_shape(outside, out, sizes - {1})
        return out

    def _special(self, name: str) -> str | None:
        roles = self._facts.roles
        if not roles:
            return None
        path = template(name)
        return roles.get(path) or next((roles[k] for k in roles if ends_alike(path, k)), None)

    def kernel(self, name: str) -> bool:
        """Whether a leaf is the matrix of a dense layer."""
        return self.role(name) == "kernel"

    def by_kernel(self, name: str, leaf: Any = None) -> str:
        """ "matrix" for kernels of dense layers, else "rest": what methods take as ``leaves``."""
        there = name in self._names
        role = self.role(name) if there else role_of(name, tuple(leaf.shape))
        shape = self._shapes[name] if there else leaf.shape
        return "matrix" if role == "kernel" and len(shape) == 2 else "rest"

    def block_depth(self, name: str) -> float | None:
        """In [0, 1]: where in its stack a leaf lies, 1 if it has one layer; None outside."""
        place = self.layer(name)
        return None if place is None else place.depth if place.stack.layers > 1 else 1.0

    def vocabulary(self, name: str) -> bool:
        """Whether a leaf has a row for every token."""
        return self.role(name) in ("embedding", "head")

    def token_axis(self, name: str) -> int:
        """The axis along which tokens lie: 1 in a bias of one row and in a kernel from them."""
        shape, sizes = self._shapes[name], set(self.vocabularies.values())
        if len(shape) != 2 or shape[0] in sizes:
            return 0
        return 1 if shape[0] == 1 or shape[1] in sizes else 0

    def rows(self, name: str) -> int:
        """How many tokens a leaf has something for."""
        return self._shapes[name][self.token_axis(name)]

    def stored(self, name: str) -> str:
        """The name in this checkpoint of what transformers' module calls `name`."""
        return name if name in self._names else renamed(name, self._facts.renames, self._names)

    def merged(self, name: str) -> bool:
        """Whether a leaf takes part in a merge: buffers are constants, frozen towers never trained.

        Neither need be in every model.
        """
        return template(name) not in self._buffers and self.frozen(name) is None

    def frozen(self, name: str) -> str | None:
        """The module that the family never trains in which a leaf lies (FLAVA's image codebook)."""
        if not self._facts.frozen:
            return None
        inside = [name[: m.start()] for m in re.finditer(r"[./]", name)]
        known = self._facts.frozen
        return next(
            (p for p in inside if any(ends_alike(template(f"{p}."), f"{k}.") for k in known)), None
        )

    @functools.cached_property
    def _buffers(self) -> set[str]:
        return {template(n) for n, role in self._roles.items() if role == "buffer"}

    def part(self, name: str) -> str:
        """Where in a layer: "attention", "mlp" or ""."""
        return part_of(name)

    def tower(self, name: str) -> str:
        """ "vision", "audio", "projector", "encoder", "decoder" or "text"."""
        return tower_of(name)

    def early(self, name: str) -> bool:
        """Whether a leaf outside of the layers comes before them: tables, towers, what is known."""
        role = self.role(name)
        if role == "head":
            return False
        if role in ("embedding", "position", "table") or "embed" in name.lower():
            return True
        path = template(name)
        if any(ends_alike(path, k) for k in self._facts.early):
            return True
        return self.tower(name) in ("vision", "audio", "projector")

    def transposed(self, name: str) -> bool:
        """Whether a kernel is stored [in, out] (GPT-2's Conv1D, Flax); torch's are [out, in].

        As the family has it; of an unknown family as the kernel's bias says, which has an entry for
        every output, else as those of all other kernels do.
        """
        path = template(name)
        if segments(name)[-1] == "kernel" or any(
            ends_alike(path, k) for k in self._facts.transposed
        ):
            return True
        if self.known is not None:
            return False
        own = orientation.by_bias(self._shapes, name) if name in self._names else None
        return self._all_in_out if own is None else own

    @functools.cached_property
    def _all_in_out(self) -> bool:
        return orientation.all_in_out(self._shapes)

    # ------------------------------------------------------------ ties

    @functools.cached_property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names that may hold one array, of which a checkpoint may store any."""
        return ties.tied(self, self._facts.ties)

    def copies(self, name: str) -> tuple[str, ...]:
        """The other names under which the array of a leaf may be stored."""
        return next((tuple(n for n in g if n != name) for g in self.tied if name in g), ())


def architecture(source: Any, config: Mapping[str, Any] | None = None) -> Architecture:
    """What a model is made of.

    Args:
        source: an opened model (`jaxmerge.io.opened_model.Source`), or a mapping of names to
            anything with a shape and a dtype.
        config: config.json; by default the source's own.

    Example:
        >>> leaves = {f"model.layers.{i}.mlp.up_proj.weight": np.ones((8, 4)) for i in range(3)}
        >>> arch = architecture(leaves | {"model.embed_tokens.weight": np.ones((9, 4))})
        >>> [(s.path, s.layers) for s in arch.stacks]
        [('model.layers', 3)]
        >>> arch.depth("model.layers.1.mlp.up_proj.weight")
        0.5
        >>> arch.role("model.embed_tokens.weight")
        'embedding'
    """
    like = getattr(source, "like", source)
    if config is not None:
        return Architecture(like, config)
    if not callable(getattr(source, "config", None)):
        return Architecture(like, {})
    if getattr(source, "made_of", None) is None:
        read = source.config()
        source.made_of = Architecture(like, read if isinstance(read, Mapping) else {})
    return source.made_of


def _floating(leaf: Any) -> bool:
    dtype = np.dtype(leaf.dtype)
    return dtype.kind in "fcV" or "float" in dtype.name
