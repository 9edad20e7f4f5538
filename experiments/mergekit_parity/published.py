"""The shapes of published recipes: stacks, gradients, filters, unused keys, odd numbers."""

from __future__ import annotations

from recipes import BUFFERS, TIED, Case, model, names, one, recipe


def published() -> dict[str, Case]:
    """Recipes in the shapes of mergekit's examples and of model cards."""
    base, a, b, c = names("llama")
    piece = lambda *sources, **more: (
        {"sources": [{"model": m, "layer_range": list(r)} | p for m, r, p in sources]} | more
    )
    layers = lambda *slices, method="passthrough", **more: Case(
        [{"merge_method": method, "slices": list(slices), "dtype": "float32"} | more]
    )
    whole = lambda *values: {
        "parameters": {"weight": list(values) if len(values) > 1 else values[0]}
    }
    t_filters = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    return {
        # the shapes of mergekit's examples
        "slerp of a published card": layers(
            piece((a, (0, 4), {}), (b, (0, 4), {})),
            method="slerp",
            base_model=a,
            parameters={"t": t_filters},
        ),
        "stack of two": layers(piece((a, (0, 3), {})), piece((b, (1, 4), {}))),
        "stack with scale": layers(
            piece((a, (0, 2), {})),
            piece(
                (
                    a,
                    (1, 3),
                    {
                        "parameters": {
                            "scale": [
                                {"filter": "o_proj", "value": 0.0},
                                {"filter": "down_proj", "value": 0.0},
                                {"value": 1.0},
                            ]
                        }
                    },
                )
            ),
            piece((a, (2, 4), {})),
        ),
        "stack of one layer twice": layers(piece((a, (0, 1), {})), piece((a, (0, 1), {}))),
        "slices merged, a gradient in each": layers(
            piece((a, (0, 2), whole(0, 1)), (b, (0, 2), whole(1, 0.5))),
            piece((a, (2, 4), whole(0, 1)), (b, (1, 3), whole(1, 0.5))),
            method="linear",
        ),
        "slices of one layer": layers(
            piece((a, (0, 1), whole(0.2, 0.7)), (b, (3, 4), whole(1, 0.5))),
            piece((a, (2, 3), whole(0.2, 0.7)), (b, (1, 2), whole(1, 0.5))),
            method="linear",
        ),
        "filter by the input's layer": layers(
            piece(
                (
                    a,
                    (2, 4),
                    {
                        "parameters": {
                            "weight": [{"filter": "layers.3.", "value": 0.9}, {"value": 0.5}]
                        }
                    },
                ),
                (
                    b,
                    (0, 2),
                    {
                        "parameters": {
                            "weight": [{"filter": "layers.0.", "value": 0.1}, {"value": 0.5}]
                        }
                    },
                ),
            ),
            method="linear",
        ),
        "slices with a base of their own": layers(
            *(
                piece((m, r, whole(1.0)), (b, r, whole(0.5)), (base, r, {}), base_model=base)
                for m, r in ((a, (0, 2)), (c, (2, 4)))
            ),
            method="task_arithmetic",
            base_model=base,
        ),
        "base joins linear": one("linear", [model(a), model(b)], base, {"weight": 0.3}),
        "base joins karcher": one("karcher", [model(a), model(b)], base),
        "slerp by a list over two models": one("slerp", [model(a), model(b)], a, {"t": [0.1, 0.9]}),
        "ties with the base listed": one(
            "ties",
            [model(base), model(a, weight=0.5, density=0.5), model(b, weight=0.5, density=0.5)],
            base,
            {"int8_mask": True},
        ),
        "ties on coarse changes": one(
            "ties",
            [model("llama/coarse1", weight=1.0, density=0.2)],
            "llama/coarse",
        )._replace(differs=TIED),
        "breadcrumbs on coarse changes": one(
            "breadcrumbs",
            [model("llama/coarse1", weight=1.0, density=0.5, gamma=0.1)],
            "llama/coarse",
        )._replace(differs=TIED),
        "unused weight under slerp": one(
            "slerp", [model(a, weight=1.0), model(b)], a, {"t": 0.5, "embed_slerp": True}
        ),
        "unused weight under model_stock": one(
            "model_stock", [model(a, weight=1.0), model(b, weight=1.0)], base
        ),
        "unused keys under sce": one(
            "sce", [model(a, weight=1.0), model(b)], base, {"normalize": True}
        ),
        "unused weight under karcher": one("karcher", [model(a, weight=1.0), model(b)]),
        "unused weight under ram": one("ram", [model(a, weight=1.0), model(b)], base),
        "revision and dtype among parameters": one(
            "linear",
            [model(a, weight=1.0, revision="main"), model(b, weight=1.0)],
            None,
            {"dtype": "float16"},
        ),
        "a rotary buffer in one model": one(
            "linear", [model("llama/old", weight=0.5), model(b, weight=0.5)]
        )._replace(differs=BUFFERS),
        "della, density 1 by default": one(
            "della", [model(a, weight=1.0), model(b, weight=0.5)], base
        ),
        "della_linear, density 1 for one": Case(
            [
                recipe(
                    "della_linear",
                    [model(a, weight=1.0, density=1), model(b, weight=0.5, density=0)],
                    base,
                )
            ]
        ),
        "numbers as text": one("linear", [model(a, weight="0.3"), model(b, weight="7e-1")]),
        "1e-10": one("karcher", [model(a), model(b)], None, {"tol": "1e-10", "max_iter": 12}),
        "nuslerp, weights that add up to 0": one(
            "nuslerp", [model(a, weight=1.0), model(b, weight=-1.0)]
        ),
        "a filter without a list": one(
            "linear", [model(a, weight={"filter": "*", "value": 0.4}), model(b, weight=0.6)]
        ),
        "dare_ties, density 0": one(
            "dare_ties", [model(a, weight=1.0, density=0), model(b, weight=0.5, density=1)], base
        ),
        "ties, density 0": one(
            "ties", [model(a, weight=1.0, density=0.0), model(b, weight=0.5, density=0.5)], base
        ),
        "normalize by layers": one(
            "task_arithmetic",
            [model(a, weight=1.0), model(b, weight=0.5)],
            base,
            {"normalize": [True, False]},
        ),
        "density by layers": one(
            "ties",
            [model(a, weight=1.0, density=[1, 0.5, 0.1]), model(b, weight=0.5, density=[0.1, 1])],
            base,
        ),
        "negative weights": one(
            "ties", [model(a, weight=1.0, density=0.5), model(b, weight=-0.5, density=0.5)], base
        ),
        "passthrough with scale": one("passthrough", [model(a, scale=0.5)]),
        "out_dtype bfloat16": one(
            "linear", [model(a, weight=1.0), model(b, weight=1.0)], out_dtype="bfloat16"
        ),
        "modules": Case(
            [
                {
                    "merge_method": "linear",
                    "modules": {
                        "default": {"models": [model(a, weight=1.0), model(b, weight=3.0)]}
                    },
                    "dtype": "float32",
                }
            ]
        ),
    }
