"""A merge is a fold over models; this page defines the four types that everything else composes.

**The grid.**  Rows are models t = 1..T, columns are the named leaves of the parameter tree.  The
cell (t, name) holds one leaf of a task vector, ``tau = theta_t[name] - theta_0[name]``.  A method
maps the grid to one row, the merged task vector, which is added to the base weights theta_0::

                 patch/kernel   block_00/query/kernel   ...   norm/scale
      model 1        tau              tau                        tau
      model 2        tau              tau                        tau        fold over rows
      ...                                                                        |
      merged         cell  ------->   cell                       cell            v

Rows may arrive over time (continual learning), columns may be read one by one (checkpoints larger
than memory), columns may be sharded over devices.  A method need not know: it is written as array
math on **one cell**, and the drivers (`jaxmerge.drivers.memory`, `jaxmerge.drivers.files.api`,
`jaxmerge.drivers.sharded`) walk the grid.

* `Transform` rewrites a task vector, leaf by leaf (trim, DARE, scale).
* `Merge` folds task vectors into one: ``init -> update* -> finalize`` on every leaf.
* `Measure` is the only thing that couples leaves: a small additive fact about a whole row (its
  norm, its k-th magnitude) that a stage receives as ``ctx.measured``.
* `Context` is what a stage may look at besides the task vector itself.

`jaxmerge.core.composition` composes stages, `jaxmerge.core.registry` names them,
`jaxmerge.methods` holds the published methods, each a composition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

Array = Any  # jax.Array or numpy.ndarray
Leaves = Mapping[str, Array]  # "vision/block_03/attn/query/kernel" -> array
Tree = Any  # a pytree of arrays; a model may be a flat (lazy) mapping of names to arrays too
Labels = Callable[[str, Array], str | None] | Sequence[tuple[str, str]]  # see `partition`
Device = Any  # a device of jax, whose class type checkers take for a variable
Cell = Any  # what a Merge remembers of one leaf: any pytree of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What is known at one cell of the grid besides the task vector.

    Attributes:
        base: this leaf of theta_0.
        step: int32 scalar, how many models were merged before this one; in `finalize` and in
            transforms after the merge, how many were merged in all.
        key: a PRNG key of this very cell (leaf, model, stage), or None when the caller gave none.
        extra: side information of this model about this leaf: "fisher", "gram", "weight", ...
        measured: the summary of this stage's `Measure`, or None when it has none.
    """

    base: Array
    step: Array
    key: Any = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measured: Any = None


class Measure(NamedTuple):
    """A fact about a whole row, gathered leaf by leaf: what one leaf contributes is *added up*.

    ``observe(leaf, summary, i) -> partial`` is what one leaf contributes in pass i; the partials
    of all leaves are summed (so leaves, files and devices may be visited in any order);
    ``refine(summary, total, i) -> summary`` digests the sum.  The summary after the last pass is
    the stage's ``ctx.measured``.

    ``scope="row"`` adds over all leaves that share this very `Measure` object; ``scope="leaf"``
    gives every leaf a summary of its own.  `host`, if given, is a numpy version of `observe`, used
    when the values are concrete and live on the CPU: it gets a
    `jaxmerge.numerics.host_rows.Row` for the leaf, and its partials may differ in form
    if `refine` takes them.  `done(summary)`, if given, says that no further pass is needed: then
    `passes` is only the most there can be.
    ``join(a, b, i)`` brings partials together where not by adding.  `by_entry` says that what a
    leaf contributes is what its pieces contribute, joined: a large leaf may then be cut.
    ``rest(x, summary) -> summary``, if given, makes all passes behind the first at once, in
    compiled code, over the entries of one array: an accelerator then waits for one result.
    """

    init: Callable[[], Any]
    observe: Callable[[Array, Any, int], Any]
    refine: Callable[[Any, Any, int], Any] = lambda summary, total, i: total
    passes: int = 1
    scope: str = "row"
    host: Callable[[Any, Any, int], Any] | None = None
    done: Callable[[Any], bool] = lambda summary: False
    join: Callable[[Array, Array, int], Array] = lambda a, b, i: a + b
    by_entry: bool = False
    rest: Callable[[Array, Any], Any] | None = None


class Transform(NamedTuple):
    """Task vector -> task vector: ``kernel(leaf, ctx) -> leaf``, the same shape and dtype.

    `route(name, like) -> Transform`, if given, chooses another transform for each leaf by its
    name (`like` maps all names to arrays or shapes); the kernel is then not called.  `models` is
    the length of a hyperparameter with a number for each model: that many models may come.
    `needs` names the `extra` side information that the kernel reads.  `decomposes` says that it
    calls LAPACK (see `jaxmerge.numerics.blas_threads`).  `host`, if given, computes what numpy
    finds faster: ``host(model, base) -> side information`` of one leaf, which the kernel reads from
    `extra` and computes itself where it is not there.
    """

    kernel: Callable[[Array, Context], Array]
    measure: Measure | None = None
    stochastic: bool = False
    route: Callable[[str, Leaves], Transform] | None = None
    spec: Any = None
    models: int | None = None
    needs: tuple[str, ...] = ()
    decomposes: bool = False
    host: Callable[[Any, Any], Mapping[str, Any] | None] | None = None

    def __repr__(self) -> str:
        return repr(self.spec) if self.spec is not None else "Transform(...)"

    def __eq__(self, other: Any) -> bool:
        return _equal(self, other, ("stochastic", "models"))

    def __hash__(self) -> int:
        return tuple.__hash__(self) if self.spec is None else hash(self.spec)


def result(cell: Cell, ctx: Context) -> Array:
    """The default `finalize`: the cell is the merged leaf."""
    return cell


class Merge(NamedTuple):
    """A fold over models, written for one leaf; see the module's picture.

    Attributes:
        init: ``leaf of the base -> cell``; build it with `zeros_like`, which keeps the sharding.
        update: ``(cell, task-vector leaf, ctx) -> cell``.
        finalize: ``(cell, ctx) -> merged task-vector leaf``; does not consume the cell.
        combine: ``(cell, cell) -> cell`` for states of disjoint sets of models, or None.
        measure: a fact about the row that enters `update`.
        opening: a fact about all cells before a row enters; `update` then receives the pair of
            that of the row and this one as ``ctx.measured``.
        closing: a fact about all cells, given to `finalize`.
        before: transforms applied to every row before `update`.
        after: transforms applied to the merged row.
        models: the least and the greatest number of models the method takes (None: any).
        stochastic: the fold draws random numbers and needs a key.
        elementwise: every entry is treated on its own, so leaves may be cut into blocks.
        needs: names of the `extra` side information that `update` reads.
        keeps_rows: the cell is a tuple of all rows so far, so it grows with every model; see
            `Slots` for one that does not.
        route: ``(name, like) -> Merge``, chooses the merge of each leaf by its name.
        decomposes: the fold calls LAPACK: see `jaxmerge.numerics.blas_threads`.
        core: spec of the fold without `before` and `after`.
        spec: how the whole was built, for printing, recipes and compilation caches.
    """

    init: Callable[[Array], Cell]
    update: Callable[[Cell, Array, Context], Cell]
    finalize: Callable[[Cell, Context], Array] = result
    combine: Callable[[Cell, Cell], Cell] | None = None
    measure: Measure | None = None
    opening: Measure | None = None
    closing: Measure | None = None
    before: tuple[Transform, ...] = ()
    after: tuple[Transform, ...] = ()
    models: tuple[int, int | None] = (1, None)
    stochastic: bool = False
    elementwise: bool = False
    needs: tuple[str, ...] = ()
    keeps_rows: bool = False
    route: Callable[[str, Leaves], Merge] | None = None
    decomposes: bool = False
    core: Any = None
    spec: Any = None

    def __repr__(self) -> str:
        return repr(self.spec) if self.spec is not None else "Merge(...)"

    def __eq__(self, other: Any) -> bool:
        return _equal(self, other, DECLARED)

    def __hash__(self) -> int:
        return tuple.__hash__(self) if self.spec is None else hash(self.spec)


DECLARED = ("models", "stochastic", "elementwise", "needs")  # plain facts about a merge


def _equal(one: Any, other: Any, declared: tuple[str, ...]) -> bool:
    """Stages are equal if they were built by one call; those without a spec only if they are one.

    A stage that was changed after it was built (``_replace``) is equal where it declares the same.
    """
    if type(one) is not type(other):
        return NotImplemented
    if one.spec is None or other.spec is None:
        return tuple.__eq__(one, other)
    same = all(getattr(one, f) == getattr(other, f) for f in declared)
    return same and bool(one.spec == other.spec)


def zeros(leaf: Array, dtype: DTypeLike | None = None) -> Array:
    """A cell of zeros for one leaf, at least float32, sharded as the leaf is.

    Args:
        leaf: of the base or of a model.
        dtype: of the zeros; by default float32, or the leaf's where that is wider.

    Example:
        >>> zeros(jnp.ones(2, jnp.bfloat16))
        Array([0., 0.], dtype=float32)
    """
    return jnp.zeros_like(leaf, dtype=dtype or working_dtype(leaf))


def working_dtype(leaf: Array) -> Any:
    """Task vectors are computed in float32, or in float64 where the leaf already is."""
    if jnp.dtype(leaf.dtype).itemsize == 1:  # float8 has no implicit promotion
        return jnp.dtype(jnp.float32)
    return jnp.promote_types(leaf.dtype, jnp.float32)


def stacked(
    reduce: Callable[[Array, Context], Array],
    models: tuple[int, int | None] = (1, None),
    **fields: Any,
) -> Merge:
    """A `Merge` that keeps all rows of a leaf and reduces them at the end.

    Args:
        reduce: ``(rows [T, *leaf], ctx) -> merged leaf``.
        models: the least and the greatest number of models it takes (None: any).
        fields: further fields of `Merge`, such as ``elementwise=True``.

    Memory: T x the leaf; files and sharded leaves still pass one leaf at a time.

    Example:
        >>> import jaxmerge as jm
        >>> median = jm.stacked(lambda rows, ctx: jnp.median(rows, axis=0), elementwise=True)
        >>> jm.merge(median, None, [{"w": np.array([v])} for v in (1.0, 2.0, 9.0)])["w"]
        array([2.])
    """
    return collected(lambda rows, ctx: reduce(jnp.stack(rows), ctx), models, **fields)


def collected(
    reduce: Callable[[tuple[Array, ...], Context], Array], models=(1, None), **fields
) -> Merge:
    """The same with the rows one by one: sums over them then fuse (XLA's reduction over a leading
    axis takes some 70 times as long on a CPU), and where all sums over the leaf are taken by
    `leaf_sum`, large leaves are cut.

    Args:
        reduce: ``(rows, each like the leaf, ctx) -> merged leaf``.

    Memory: T x the leaf, or T x a piece of it.
    """
    return Merge(
        init=lambda leaf: (),
        update=lambda rows, x, ctx: rows.put(ctx, x) if isinstance(rows, Slots) else (*rows, x),
        finalize=reduce,
        combine=lambda a, b: (*a, *b),
        models=models,
        keeps_rows=True,
        **fields,
    )


@jax.tree_util.register_pytree_with_keys_class
class Slots(tuple):
    """All rows of a leaf, with room for a number of models known before: its form stays."""

    def put(self, ctx: Context, x: Array) -> Slots:
        """The same with the row of this model in its place."""
        return Slots(jnp.where(ctx.step == t, x, row) for t, row in enumerate(self))

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.SequenceKey(t), row) for t, row in enumerate(self)], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(children)


@jax.jit
def leaf_sum(x: Array) -> Array:
    """The sum over all entries of a leaf.

    A kernel that sums by this function and treats entries on their own otherwise may be cut: the
    file driver adds up the pieces of a very large leaf
    (`jaxmerge.drivers.files.elementwise_proof`).
    """
    return jnp.sum(x)


@jax.jit
def leaf_size(x: Array) -> Array:
    """The number of entries of a leaf, int32, for kernels that may be cut (see `leaf_sum`)."""
    return jnp.int32(x.size)


def beside(kind: str, x: Array, ctx: Context) -> Array | None:
    """The side information of this leaf, entry by entry; None if it was left out."""
    side = ctx.extra.get(kind)
    if side is not None and side.shape != x.shape:
        raise ValueError(
            f"The {kind} of a leaf has shape {list(side.shape)}, but the leaf has shape "
            f"{list(x.shape)}. Was it measured on another model?"
        )
    return side


def concrete(*values: Any) -> bool:
    """Whether no value is being traced by jit, vmap or grad."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(values))


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python's or numpy's; True and False are none.

    >>> is_whole(np.int64(3)), is_whole(True), is_whole(3.0)
    (True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def numpy_of(*values: Any) -> Any:
    """numpy where all values are concrete, jax.numpy where one is being traced."""
    return np if concrete(*values) else jnp
