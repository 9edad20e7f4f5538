"""A setup built: the model with its wraps, the methods, and what every stage reads of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmerge.continual.hook_calls import kind, named
from jaxmerge.continual.optimisers import gives_gradient
from jaxmerge.continual.records import LAST, Batch, Method, Model
from jaxmerge.continual.stream_records import Problem, Setup, State, Stream
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Array, Leaves, concrete
from jaxmerge.core.validation import grid_of
from jaxmerge.drivers import memory as merging
from jaxmerge.errors import listed


class Parts(NamedTuple):
    """A setup built: the wrapped model, methods with their names, the problem, how many tasks."""

    model: Model
    methods: tuple[Method, ...]
    names: tuple[str, ...]
    problem: Problem
    tasks: int


def build(setup: Setup, tasks: int) -> Parts:
    """Build the specs of a setup; wraps are applied in order, the last is outermost.

    Where methods claim kernels, the model's `init` raises ValueError if two claim the same, or if
    the optimiser is not the one that a method's own steps take.

    Raises:
        ValueError: two methods replace the same thing (`Method.replaces`), such as the objective;
            one that makes steps itself beside one that moves the weights before them; a spec that
            builds something else than what stands in its place.
    """
    methods, names = together(setup.methods)
    network = model = _built(setup.model, Model)
    for method, name in zip(methods, names, strict=True):
        if method.wrap is not None:
            with named(f"{name}: `wrap`"):
                model = _is(method.wrap(model, tasks), Model, f"{name}: `wrap` gives")
    steps, moves = ([n for n, m in zip(names, methods, strict=True) if of(m)] for of in (
        lambda m: m.steps, lambda m: m.perturb is not None,
    ))  # fmt: skip
    if steps and moves:
        raise ValueError(
            f"{listed(steps)[:-1]} makes steps of its own, of gradients alone, and "
            f"{listed(moves)[:-1]} moves weights before a step; use one of them in a stream."
        )
    if steps or sum(m.claims is not None for m in methods) > 1:
        wrapped = model.init

        def init(key):
            own = _claimed(network, jax.eval_shape(network.init, key), methods, names)
            _apart(own)
            _stepped(setup.optimiser, own, steps)
            return wrapped(key)

        model = model._replace(init=init)
    return Parts(model, methods, names, _built(setup.problem, Problem), tasks)


def _claimed(
    network: Model, params: Leaves, methods: Sequence[Method], names: Sequence[str]
) -> dict[str, list[str]]:
    """The kernels that each method claims."""
    claimed = {}
    for method, name in zip(methods, names, strict=True):
        if method.claims is not None:
            with named(f"{name}: `claims`"):
                claimed[name] = list(method.claims(network, params))
    return claimed


def _stepped(optimiser: Spec, claimed: Mapping[str, list[str]], who: Sequence[str]) -> None:
    """Raise ValueError where a method makes the steps itself of what is not the gradient."""
    wrong = {n: [k for k in claimed.get(n, []) if not gives_gradient(optimiser, k)] for n in who}
    if found := [f"{n} makes the steps of {_few(k)} itself" for n, k in wrong.items() if k]:
        traced = any(not concrete(x) for x in jax.tree.leaves(optimiser))
        given = optimiser.factory.__name__ if traced else optimiser
        raise ValueError(
            f"{listed(found)} It takes their gradients from the optimiser, which is {given}: "
            'give these kernels sgd(1.0), as in by_name((("<kernels>", sgd(1.0)), (".*", ...))), '
            "whose patterns match whole names."
        )


def _few(kernels: Sequence[str]) -> str:
    return ", ".join(kernels[:4]) + (f" and {len(kernels) - 4} more" if len(kernels) > 4 else "")


def _apart(claimed: Mapping[str, list[str]]) -> None:
    """Raise ValueError where two methods claim one kernel."""
    owner: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, own in claimed.items():
        for kernel in own:
            if kernel in owner:
                shared.setdefault((owner[kernel], name), []).append(kernel)
            owner[kernel] = name
    if shared:
        wrong = [f"{a} and {b} both decide how {_few(k)} changes" for (a, b), k in shared.items()]
        raise ValueError(
            f"{listed(wrong)} Give each its own kernels by their patterns, or use one of them."
        )


def together(specs: Sequence[Spec]) -> tuple[tuple[Method, ...], tuple[str, ...]]:
    """Methods of one stream, built, and their names, which tell two of a kind apart.

    Raises:
        ValueError: two methods replace the same thing (`Method.replaces`), such as the objective; a
            spec that builds no method.
    """
    methods, names, count = tuple(_built(m, Method) for m in specs), [], {}
    for spec in specs:
        name = spec.factory.__name__
        count[name] = count.get(name, 0) + 1
        names.append(name if count[name] == 1 else f"{name} {count[name]}")
    taken: dict[str, list[str]] = {}
    for name, method in zip(names, methods, strict=True):
        own = ("the objective",) if method.objective is not None else ()
        for what in {*own, *method.replaces}:
            taken.setdefault(what, []).append(name)
    for what, by in taken.items():
        if len(by) > 1:
            both = " and ".join(by)
            raise ValueError(f"{both} both replace {what}; use one of them in a stream.")
    return methods, tuple(names)


def _built(spec: Any, record: type) -> Any:
    return _is(spec.build(), record, f"{spec!r} builds")


def _is(what: Any, record: type, who: str) -> Any:
    """What is of this record, or a ValueError."""
    if not isinstance(what, record):
        raise ValueError(f"{who} a `{record.__name__}`; found {kind(what)}.")
    return what


def named_key(key: Array, name: str) -> Array:
    """A key by name, as in merges: a method placed beside another changes none of its draws."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def objective_of(parts: Parts, info: Any, t: Array) -> Callable[..., Array]:
    """``(outputs, batch) -> [B]`` of task t."""
    who, function = _objective(parts)

    def objective(outputs: Any, batch: Batch) -> Array:
        with named(who):
            return function(outputs, batch, info, t)

    return objective


def objective_name(parts: Parts) -> str:
    """Whose objective the steps lower, in words."""
    return _objective(parts)[0]


def _objective(parts: Parts) -> tuple[str, Callable[..., Array]]:
    for name, method in zip(parts.names, parts.methods, strict=True):
        if method.objective is not None:
            return f"{name}: `objective`", method.objective
    return "the objective of the problem", parts.problem.objective


def transform(setup: Setup, total: Any) -> optax.GradientTransformation:
    """The optimiser of a task of `total` steps; a schedule may read them."""
    optimiser = setup.optimiser.build()
    return optimiser if hasattr(optimiser, "update") else optimiser(total)


class Fed(NamedTuple):
    """Inputs of a batch whose view the host has made (packed sentences); `stored` as in `Step`."""

    stored: Any
    inputs: Any


def stored(stream: Stream, rows: Array, origin: Array, weight: Array) -> Batch:
    """Examples as they are stored."""
    take = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[rows], tree)
    return Batch(take(stream.inputs), take(stream.targets), origin, weight)


def trained_leaves(model: Model, params: Leaves, t: Array) -> dict[str, Array]:
    """The leaves that task t trains; of slots one only, so moments do not grow with the tasks."""
    slot = model.slot(params, t)
    own = lambda n, p: (
        jax.lax.dynamic_index_in_dim(p, slot, keepdims=False) if model.slots(n) else p
    )
    return {n: own(n, p) for n, p in params.items() if model.trainable(n)}


def with_trained(model: Model, params: Leaves, trained: Leaves, t: Array) -> dict[str, Array]:
    """`params` with trained leaves put in their places."""
    slot = model.slot(params, t)
    put = lambda n, x: _in_slot(params[n], x, slot) if model.slots(n) else x
    return {**params, **{n: put(n, x) for n, x in trained.items()}}


def lengths_of_slots(model: Model, params: Leaves, trained: bool = False) -> dict[str, int]:
    """How many slots each leaf of slots has; only those that train, if asked for."""
    own = lambda n: model.slots(n) and (model.trainable(n) or not trained)
    return {n: p.shape[0] if jnp.ndim(p) else 0 for n, p in params.items() if own(n)}


def known_slot(parts: Parts, params: Leaves, t: int) -> None:
    """Raise ValueError where task t is to train a slot that is not there, after `begin`.

    Compiled code cannot raise: there the losses of such a task are NaN.
    """
    lengths = lengths_of_slots(parts.model, params, trained=True)
    if not lengths:
        return
    slot = int(parts.model.slot(params, t))
    if wrong := [f"{n} has 0 to {k - 1}" for n, k in lengths.items() if not 0 <= slot < k]:
        raise ValueError(
            f"Task {t} is to train slot {slot}, but {', '.join(wrong)}: look at what `Model.slot` "
            "reads, and at the `begin` that writes it."
        )


@jax.custom_vjp
def _in_slot(slots: Array, x: Array, slot: Array) -> Array:
    """``[tasks, ...]`` with x in one slot, chosen entry by entry: a network that reads one slot
    pays for one, where an update in place of a constant would copy all at every step."""
    here = jnp.arange(slots.shape[0]) == slot
    return jnp.where(here.reshape(-1, *[1] * x.ndim), x[None], slots)


def _out_of_slot(slot: Array, cotangent: Array) -> tuple[None, Array, None]:
    own = jax.lax.dynamic_index_in_dim(cotangent, slot, keepdims=False)
    return None, own, None


_in_slot.defvjp(lambda slots, x, slot: (_in_slot(slots, x, slot), slot), _out_of_slot)


def merged_params(setup: Setup, model: Model, state: State, label: str) -> Leaves:
    """The params of a deployment."""
    if label == LAST:
        return state.params
    base = model.weights(state.base, 0)
    return model.put(
        state.params, merging.merged(setup.merges[label].build(), state.merges[label], base)
    )


def rows_kept(setup: Setup, model: Model, base: Leaves, label: str) -> list[str]:
    """The leaves of which a merge keeps a row of every model; its state grows with each.

    Args:
        model, base: the network and theta_0.
        label: of the merge.
    """
    form = jax.eval_shape(lambda params: dict(model.weights(params, 0)), dict(base))
    grid = grid_of(setup.merges[label].build(), form)
    return [n for n, p in grid.items() if p.fold.keeps_rows]


def same_form(
    before: Any, after: Any, who: str, what: str = "its memory", dtypes: bool = True
) -> Any:
    """`after`, if its structure, shapes and (where they matter) dtypes are those of `before`.

    Raises:
        ValueError: they are not; compiled code needs one form for all tasks.
    """
    form = lambda tree: {
        jax.tree_util.keystr(path): (tuple(jnp.shape(x)), jnp.result_type(x) if dtypes else "")
        for path, x in jax.tree.leaves_with_path(tree)
    }
    one, other = form(before), form(after)
    wrong = [
        f"{k or 'it'} was {_form_text(one.get(k))}, is {_form_text(other.get(k))}"
        for k in {**one, **other}
        if one.get(k) != other.get(k)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{who} changes the form of {what}: {'; '.join(wrong[:3])}{more}.")
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(f"{who} changes the structure of {what}.")
    return after


def _form_text(form: tuple | None) -> str:
    return "absent" if form is None else f"{form[1]}{list(form[0])}"
