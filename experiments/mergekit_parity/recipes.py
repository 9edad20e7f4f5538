"""Recipes as data, and every method on one family."""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """What differs on purpose, and no more than that.

    Attributes:
        why: the reason, for the page.
        leaves: parts of the names of the only leaves that may differ.
        entries: how many entries may differ, where that is known.
        absent: parts of the names of leaves that only one of the outputs may have.
        counted: as many entries change from the base, leaf by leaf.
    """

    why: str
    leaves: tuple[str, ...] = ("",)
    entries: int | None = None
    absent: tuple[str, ...] = ()
    counted: bool = False


class Case(NamedTuple):
    """One recipe.

    Attributes:
        documents: mergekit's YAML as data, one or more documents.
        kind: "yaml", "multi" (several documents) or "raw" (`mergekit-pytorch`).
        random: draws random numbers.
        differs: what differs on purpose, where something does.
        options: of the command line, the same for both programs.
    """

    documents: list[dict]
    kind: str = "yaml"
    random: bool = False
    differs: Difference | None = None
    options: tuple[str, ...] = ()


STAY = "buffers stay as they are, there they are merged like weights"
APART = "experts stored apart are merged apart, there all of a layer as one array"
DIFFERS = {
    "arcee_fusion": Difference(
        "the cancellation in a float32 divergence decides at the threshold there", entries=3
    ),
    "t5/linear-filter": Difference(
        "`mlp` is T5's DenseReluDense here; there it matches no name", ("DenseReluDense",)
    ),
    "pythia": Difference(STAY, ("attention.bias", "masked_bias", "inv_freq")),
    "mixtral/slerp": Difference(APART, ("experts",)),
    "qwen3_moe/slerp": Difference(APART, ("experts",)),
    "apertus": Difference(STAY, ("act_fn.beta", "act_fn.eps")),
}  # of a method, of one recipe, of a family
BUFFERS = Difference(
    "a buffer stays as in the first model; there it is left out where not all models have it",
    leaves=(), absent=("rotary_emb.inv_freq",),
)  # fmt: skip
TIED = Difference("of equal magnitudes the first stay here; as many there", counted=True)


def recipe(method, models, base=None, parameters=None, **more) -> dict:
    """mergekit's YAML as data."""
    document = {"merge_method": method, "models": models, "dtype": "float32"}
    document |= {"base_model": base} if base else {}
    document |= {"parameters": parameters} if parameters else {}
    return document | more


def model(ref, **parameters) -> dict:
    """An entry of ``models``."""
    return {"model": ref} | ({"parameters": parameters} if parameters else {})


def one(method, models, *rest, **more) -> Case:
    """A case of one document; arguments as of `recipe`."""
    return Case([recipe(method, models, *rest, **more)])


def names(family: str) -> tuple[str, str, str, str]:
    """The base and three fine-tunes of a family."""
    return tuple(f"{family}/{x}" for x in ("base", "a", "b", "c"))


def methods(f: str) -> dict[str, Case]:
    """Every method of mergekit on the models of a family."""
    out: dict[str, Case] = {}
    base, a, b, c = names(f)
    two = [model(a, weight=0.6), model(b, weight=0.4)]
    three = [model(a, weight=1.0), model(b, weight=0.5), model(c, weight=0.3)]
    dense = [model(a, weight=1.0, density=0.5), model(b, weight=0.5, density=0.3)]
    task = {
        "linear": recipe("linear", three),
        "linear-raw": recipe("linear", three, parameters={"normalize": False}),
        "slerp": recipe("slerp", [model(b)], a, {"t": 0.3}),
        "task_arithmetic": recipe("task_arithmetic", three, base),
        "ties": recipe("ties", dense, base, {"normalize": True}),
        "ties-sum": recipe("ties", dense, base, {"normalize": False, "lambda": 0.7}),
        "breadcrumbs": recipe(
            "breadcrumbs",
            [model(a, weight=1.0, density=0.6, gamma=0.05), model(b, weight=0.4, density=0.9)],
            base,
        ),
        "breadcrumbs_ties": recipe(
            "breadcrumbs_ties",
            [model(a, weight=1.0, density=0.6, gamma=0.05), model(b, weight=0.4, density=0.9)],
            base,
        ),
        "model_stock": recipe("model_stock", [model(a), model(b), model(c)], base),
        "nuslerp": recipe("nuslerp", two),
        "nuslerp-base": recipe("nuslerp", two, base),
        "multislerp": recipe("multislerp", three),
        "karcher": recipe("karcher", [model(a), model(b), model(c)]),
        "sce": recipe("sce", [model(a), model(b), model(c)], base, {"select_topk": 0.3}),
        "ram": recipe("ram", [model(a), model(b)], base),
        "arcee_fusion": recipe("arcee_fusion", [model(a)], base),
        "nearswap": recipe("nearswap", [model(a)], base, {"t": 0.01}),
        "linear-gradient": recipe(
            "linear", [model(a, weight=[0, 0.5, 1]), model(b, weight=[1, 0.5, 0])]
        ),
        "linear-filter": recipe(
            "linear",
            [
                model(
                    a,
                    weight=[
                        {"filter": "norm", "value": 0.9},
                        {"filter": "mlp", "value": [0.2, 0.8]},
                        {"value": 0.5},
                    ],
                ),
                model(b, weight=0.5),
            ],
        ),
    }
    spread = {
        "dare_ties": recipe("dare_ties", dense, base),
        "dare_linear": recipe("dare_linear", dense, base),
        "della": recipe("della", dense, base, {"epsilon": 0.1}),
        "della_linear": recipe("della_linear", dense, base, {"epsilon": 0.1}),
    }
    for name, document in (task | spread).items():
        differs = DIFFERS.get(f"{f}/{name}") or DIFFERS.get(name) or DIFFERS.get(f)
        out[f"{f}/{name}"] = Case([document], random=name in spread, differs=differs)
    return out
