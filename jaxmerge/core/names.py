"""Trees <-> names, and the check that all models have the leaves of the base.

Inside jaxmerge a model is a flat mapping ``name -> array``.  `flatten` gives that view of any
pytree and the way back; a mapping of strings to arrays is taken as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.types import Leaves
from jaxmerge.errors import screen


def flatten(tree: Any) -> tuple[Leaves, Callable[[Leaves], Any]]:
    """A pytree as a flat mapping, and the function that puts such a mapping back in its form.

    Names join the path with "/"; Python numbers become arrays.  What NNX modules share is one leaf,
    and is shared again behind the way back.

    Example:
        >>> flat, back = flatten({"layer": [{"w": np.ones(2)}, {"w": np.zeros(2)}]})
        >>> list(flat)
        ['layer/0/w', 'layer/1/w']
        >>> back(flat)["layer"][1]["w"]
        array([0., 0.])

    Raises:
        ValueError: two leaves get one name (both paths are shown), or a leaf is no array.
    """
    if is_flat(tree):
        return tree, lambda flat: {n: flat[n] for n in tree}
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    if (apart := _shared(tree, [leaf for _, leaf in paths])) is not None:
        once, back = flatten(apart[0])
        return once, lambda new: apart[1](back(new))
    flat: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    wrong = []
    for path, leaf in paths:
        name = "/".join(_part(k) for k in path)
        if name in flat:
            where, other = (jax.tree_util.keystr(p) for p in (seen[name], path))
            wrong.append(f"two leaves are called {name!r}: {where} and {other}; rename one")
        if isinstance(leaf, bool | int | float | complex):
            leaf = jnp.asarray(leaf)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            wrong.append(f"leaf {name!r} is a {type(leaf).__name__}, not an array; leave it out")
        flat[name], seen[name] = leaf, path
    if wrong:
        raise ValueError("This is no model:\n  " + "\n  ".join(screen(wrong)))
    order = list(flat)
    return flat, lambda new: jax.tree_util.tree_unflatten(treedef, [new[n] for n in order])


def _shared(tree: Any, leaves: list[Any]) -> tuple[Any, Callable[[Any], Any]] | None:
    """The state of NNX modules that share a variable, which is in it once, and the way back; None
    where nothing is shared.  As a pytree such a module has the variable twice."""
    nnx = sys.modules.get("flax.nnx")
    arrays = [id(x) for x in leaves if hasattr(x, "shape")]  # equal numbers may be one object
    if nnx is None or len(set(arrays)) == len(arrays):
        return None
    module = lambda x: isinstance(x, nnx.Module)
    if not any(map(module, jax.tree.leaves(tree, is_leaf=module))):
        return None
    graph, state = nnx.split(tree)
    return state, lambda new: nnx.merge(graph, new)


def is_flat(tree: Any) -> bool:
    """Whether this is a mapping of names to arrays already (lazy mappings are not read)."""
    if not isinstance(tree, Mapping) or not all(isinstance(k, str) for k in tree):
        return False
    if isinstance(tree, dict):
        return all(hasattr(v, "shape") for v in tree.values())
    return jax.tree_util.all_leaves([tree])  # else a pytree of its own, such as nnx.State


def _part(key: Any) -> str:
    for field in ("key", "name", "idx"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is merged (floating) or taken from the base untouched (integers, flags)."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def rows_of(models: Any, base: Any = None) -> list[Leaves]:
    """The models one by one, flat: of a list of trees, or of one tree of leaves [T, *leaf].

    Args:
        base: one model, flat; a tree that has its leaves with an axis more is one of stacked ones.

    >>> base = {"w": np.zeros(2)}
    >>> [x["w"].shape for x in rows_of({"w": np.ones((3, 2))}, base)]
    [(2,), (2,), (2,)]

    Raises:
        ValueError: stacked leaves of different lengths.
    """
    if isinstance(models, list | tuple) or not is_stacked(models, base):
        many = models.values() if isinstance(models, Mapping) else models
        return [flatten(m)[0] for m in many]
    flat = flatten(models)[0]
    lengths = {n: x.shape[0] if x.ndim else None for n, x in flat.items()}
    length = next(iter(lengths.values()), None)
    if length is None or set(lengths.values()) != {length}:
        raise ValueError(
            "Stacked models need one leading axis of one length in every leaf, found "
            f"{dict(list(lengths.items())[:6])}."
        )
    return [{n: x[t] for n, x in flat.items()} for t in range(length)]


def is_stacked(models: Any, base: Any) -> bool:
    """Whether this is one tree of the base's leaves with an axis for the models before theirs."""
    if base is None or hasattr(models, "__next__"):
        return False
    try:
        flat = flatten(models)[0]
    except ValueError:
        return False
    if hasattr(flat, "like") or set(flat) != set(base):
        return False
    shapes = [(tuple(x.shape), tuple(base[n].shape)) for n, x in flat.items()]
    return all(len(a) > len(b) and a[1:] == b for a, b in shapes)


class Zeros(Mapping):
    """The base of a merge without a base: zeros like one model, made leaf by leaf when asked."""

    def __init__(self, like: Leaves):
        self.like = like

    def __getitem__(self, name: str) -> Any:
        leaf = self.like[name]
        return jnp.zeros_like(leaf) if is_float(leaf) else leaf

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def check_same(base: Leaves, *models: Leaves, who: str = "model {}", first: int = 0) -> None:
    """Raise one ValueError that says of every model what does not fit the base: the first leaves
    of each kind and how many more, and the prefix if names differ by one.

    Example:
        >>> base = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
        >>> check_same(base, base, {"w": np.ones((3, 2), np.float32)})
        Traceback (most recent call last):
        ValueError: model 1 does not fit the base:
          missing leaf 'b' (base: float32[3])
          leaf 'w': found float32[3,2], expected float32[2,3]
        Give every model the leaves of the base, in its shapes, floats for floats.
    """
    messages = []
    for t, model in enumerate(models, first):
        wrong = mismatches(base, model)
        if wrong:
            kinds = [[w for w in wrong if w.startswith(k)] for k in ("missing", "extra", "leaf")]
            lines = [line for mismatched in kinds for line in screen(mismatched, 6)]
            missing, extra = (
                [n for n in a if n not in b] for a, b in ((base, model), (model, base))
            )
            pair = other_prefix(extra, missing) if missing and extra else None
            if pair is not None:
                lines.append(f"its names begin with {pair[0]!r} where the base's have {pair[1]!r}")
            messages += [f"{who.format(t)} does not fit the base:", *(f"  {x}" for x in lines)]
    if messages:
        raise ValueError(
            "\n".join(screen(messages, 30))
            + "\nGive every model the leaves of the base, in its shapes, floats for floats."
        )


def mismatches(base: Leaves, model: Leaves) -> list[str]:
    """A line for each leaf of `model` that is missing, extra, or of another shape or kind.

    Floating dtypes may differ: a change is computed in float32 and cast to the base's dtype.
    """
    wrong = [f"missing leaf {n!r} (base: {kind(base[n])})" for n in base if n not in model]
    wrong += [f"extra leaf {n!r} ({kind(model[n])})" for n in model if n not in base]
    for n in base:
        if n in model:
            leaf, expected = model[n], base[n]
            if leaf.shape != expected.shape or is_float(leaf) != is_float(expected):
                wrong.append(f"leaf {n!r}: found {kind(leaf)}, expected {kind(expected)}")
    return wrong


def other_prefix(names: Collection[str], expected: Collection[str]) -> tuple[str, str] | None:
    """The prefix that most of `names` have in the place of one of the names `expected`.

    Args:
        names, expected: those that are in one model only.

    Returns:
        What `names` begins with and what `expected` has there, one of them perhaps empty; None if
        no exchange of prefixes explains half of the names.

    >>> other_prefix(["m.a.w", "m.b.w"], ["a.w", "b.w", "c.w"])
    ('m.', '')
    >>> other_prefix(["bert.x.a", "bert.x.b", "head"], ["model.x.a", "model.x.b"])
    ('bert.', 'model.')
    """
    known, best, most = set(expected), None, max(1, (len(names) - 1) // 2)
    tried = set()
    for name in sorted(names, key=len)[-3:]:
        for other in sorted(known, key=len):
            pair = _heads(name, other)
            if pair is None or pair in tried:
                continue
            tried.add(pair)
            mine, theirs = pair
            fits = sum(n.startswith(mine) and theirs + n[len(mine) :] in known for n in names)
            if fits > most:
                best, most = pair, fits
    return best


def _heads(a: str, b: str) -> tuple[str, str] | None:
    """What two names begin with before their common end, which begins with a whole segment."""
    size = 0
    while size < min(len(a), len(b)) and a[-1 - size] == b[-1 - size]:
        size += 1
    while size and not all(len(x) == size or x[-size - 1] in "./" for x in (a, b)):
        size -= 1
    return (a[: len(a) - size], b[: len(b) - size]) if size else None


def kind(leaf: Any) -> str:
    """ "float32[2,3]"."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
