"""Documented options of mergekit: how models are named, parameters placed, stacks nested."""

from __future__ import annotations

from recipes import TIED, Case, Difference, model, names, one, recipe

ABSENT = Difference(
    "a token that the models of a slice lack has the row of another model; there it is zero",
    ("lm_head.weight",), entries=32,
)  # fmt: skip


def options() -> dict[str, Case]:
    """Recipes that use one option each, on the Llamas."""
    return references() | placed() | stacks() | settings() | more_tokens() | stages()


def references() -> dict[str, Case]:
    """Ways to name a model."""
    base, a, b, c = names("llama")
    return {
        "a reference as a mapping": one(
            "linear",
            [model({"model": {"path": a}}, weight=0.7), model({"model": {"path": b}}, weight=0.3)],
        ),
        "a base as a mapping": one(
            "task_arithmetic", [model(a, weight=0.5)], {"model": {"path": base}}
        ),
        "references as another architecture": one(
            "linear",
            [
                model({"model": {"path": m}, "override_architecture": "MistralForCausalLM"},
                      weight=w)
                for m, w in ((a, 0.7), (b, 0.3))
            ],
        ),
        "an adapter on a base": one(
            "linear", [model(f"{base}+llama/adapter", weight=0.5), model(b, weight=0.5)]
        ),
        "adapters as task vectors": one(
            "task_arithmetic",
            [model(f"{base}+llama/adapter", weight=0.6), model(c, weight=0.4)],
            base,
        ),
        "an adapter as a mapping": one(
            "slerp",
            [model({"model": {"path": base}, "lora": {"path": "llama/adapter"}})],
            b,
            {"t": 0.4},
        ),
        "one model twice": one("linear", [model(a, weight=0.5), model(a, weight=0.5)]),
        "the base among the models": one(
            "task_arithmetic", [model(base), model(a, weight=0.5), model(b, weight=0.3)], base
        ),
        "one model": one("linear", [model(a, weight=1.0)]),
    }  # fmt: skip


def placed() -> dict[str, Case]:
    """Places where a parameter may stand, gradients and filters in each of them."""
    base, a, b, c = names("llama")
    part = lambda m, r, **p: {"model": m, "layer_range": r} | ({"parameters": p} if p else {})
    entries = [{"filter": "q_proj", "value": 0.9}, {"filter": "self_attn", "value": [0.1, 0.4]},
               {"filter": "mlp", "value": [0.6, 0.2, 0.8]}, {"value": 0.5}]  # fmt: skip
    return {
        "one weight for all": one("linear", [model(a), model(b), model(c)], None, {"weight": 0.4}),
        "a model over the whole": one(
            "linear", [model(a, weight=0.9), model(b)], None, {"weight": 0.2}
        ),
        "density for all": one(
            "ties", [model(a, weight=1.0), model(b, weight=0.5)], base, {"density": 0.4}
        ),
        "the first filter decides": one("slerp", [model(b)], a, {"t": entries}),
        "filters of embeddings and heads": one(
            "slerp",
            [model(b)],
            a,
            {"t": [{"filter": "embed_tokens", "value": 0.0}, {"filter": "lm_head", "value": 1.0},
                   {"filter": "layernorm", "value": 0.7}, {"filter": "model.norm", "value": 0.2},
                   {"value": [0.3, 0.6]}]},
        ),
        "a filter that nothing matches": one(
            "linear",
            [model(a, weight=[{"filter": "no_such", "value": 9.0}, {"value": 0.5}]),
             model(b, weight=0.5)],
        ),
        "a gradient of many": one(
            "linear",
            [model(a, weight=[0, 0.1, 0.9, 0.3, 0.7, 0.2, 1.0]), model(b, weight=0.5)],
        ),
        "a gradient of one": one("linear", [model(a, weight=[0.7]), model(b, weight=[0.3])]),
        "lambda by layers": one(
            "task_arithmetic", [model(a, weight=1.0), model(b, weight=0.5)], base,
            {"lambda": [0.2, 1.0, 0.4]},
        ),
        "density by filters": one(
            "ties",
            [model(a, weight=0.7, density=[{"filter": "mlp", "value": 0.2}, {"value": 0.9}]),
             model(b, weight=[{"filter": "self_attn", "value": 0.1}, {"value": 0.6}],
                   density=0.5)],
            base,
        ),
        "t by layers for nearswap": one("nearswap", [model(a)], base, {"t": [0.001, 0.02]}),
        "parameters of a slice": Case([{
            "merge_method": "linear",
            "slices": [
                {"sources": [part(a, [0, 2], weight=0.9), part(b, [0, 2])],
                 "parameters": {"weight": 0.3}},
                {"sources": [part(a, [2, 4]), part(b, [2, 4], weight=[0.1, 0.6])]},
            ],
            "parameters": {"weight": 0.5}, "dtype": "float32",
        }]),
        "slerp in slices": Case([{
            "merge_method": "slerp", "base_model": a, "dtype": "float32",
            "slices": [
                {"sources": [part(a, [0, 2]), part(b, [0, 2])], "parameters": {"t": [0, 1]}},
                {"sources": [part(a, [2, 4]), part(b, [2, 4])], "parameters": {"t": 0.25}},
            ],
        }]),
        "ties in slices": Case([{
            "merge_method": "ties", "base_model": base, "dtype": "float32",
            "slices": [
                {"sources": [part(base, [0, 4]), part(a, [0, 4], weight=1.0, density=0.5),
                             part(b, [0, 4], weight=0.4, density=[0.2, 0.8])]},
            ],
            "parameters": {"normalize": True},
        }]),
        "modules with parameters": Case([{
            "merge_method": "linear", "dtype": "float32",
            "modules": {"default": {
                "models": [model(a), model(b, weight=0.8)], "parameters": {"weight": 0.3}}},
        }]),
    }  # fmt: skip


def stacks() -> dict[str, Case]:
    """Stacks of published shapes, nested ones as documents of their own."""
    base, a, b, c = names("llama")
    one_of = lambda m, r, **p: {
        "sources": [{"model": m, "layer_range": r} | ({"parameters": p} if p else {})]
    }
    stack = lambda *slices, **more: (
        {"merge_method": "passthrough", "slices": list(slices), "dtype": "float32"} | more
    )
    pair = lambda r, w: {
        "sources": [{"model": m, "layer_range": r, "parameters": {"weight": x}}
                    for m, x in ((a, w), (b, 1 - w))]
    }  # fmt: skip
    off = [{"filter": "o_proj", "value": 0}, {"filter": "down_proj", "value": 0}, {"value": 1}]
    return {
        "two models by turns": Case([stack(
            one_of(a, [0, 2]), one_of(b, [1, 3]), one_of(a, [2, 3]), one_of(b, [2, 4]),
            one_of(a, [3, 4]),
        )]),
        "layers left out": Case([stack(one_of(a, [0, 1]), one_of(a, [3, 4]))]),
        "layers in another order": Case([stack(
            one_of(a, [2, 4]), one_of(a, [0, 2]),
        )]),
        "every layer twice": Case([stack(
            *(one_of(a, [i, i + 1]) for i in range(4) for _ in range(2))
        )]),
        "every layer twice, the second silent": Case([stack(
            *(one_of(a, [i, i + 1], **({"scale": off} if k else {}))
              for i in range(4) for k in range(2))
        )]),
        "a stack by scales of layers": Case([stack(
            one_of(a, [0, 4], scale=[0.5, 1.0]), one_of(b, [0, 2], scale=[1.0, 0.0]),
        )]),
        "scale for all": Case([stack(
            one_of(a, [0, 2]), one_of(b, [2, 4]), parameters={"scale": 0.9}
        )]),
        "a merge with more layers": Case([{
            "merge_method": "linear", "dtype": "float32",
            "slices": [pair([0, 3], 0.6), pair([1, 4], 0.3), pair([3, 4], 0.5)],
        }]),
        "a base from further down": Case([{
            "merge_method": "task_arithmetic", "base_model": base, "dtype": "float32",
            "slices": [{"sources": [
                {"model": base, "layer_range": [0, 2]},
                {"model": a, "layer_range": [2, 4], "parameters": {"weight": 0.5}},
                {"model": b, "layer_range": [1, 3], "parameters": {"weight": 0.25}},
            ]}],
        }]),
        "a stack of a merge": Case([
            recipe("linear", [model(a, weight=1.0), model(b, weight=1.0)], name="mean"),
            stack(one_of("mean", [0, 3]), one_of(c, [1, 4])),
        ], "multi"),
        "a merge of two stacks": Case([
            stack(one_of(a, [0, 3]), one_of(a, [1, 4]), name="up"),
            stack(one_of(b, [0, 3]), one_of(c, [1, 4]), name="down"),
            recipe("slerp", [model("up"), model("down")], "up", {"t": [0.1, 0.5, 0.9]}),
        ], "multi"),
        "a stack of a stack": Case([
            stack(one_of(a, [0, 3]), one_of(b, [1, 4]), name="inner"),
            stack(one_of("inner", [0, 5]), one_of("inner", [2, 6])),
        ], "multi"),
    }  # fmt: skip


def settings() -> dict[str, Case]:
    """Settings of single methods."""
    base, a, b, c = names("llama")
    three = [model(a, weight=1.0), model(b, weight=0.5), model(c, weight=0.3)]
    dense = [model(a, weight=1.0, density=0.5), model(b, weight=0.5, density=0.3)]
    gamma = [model(a, weight=1.0, density=0.6, gamma=0.05), model(b, weight=0.4, density=0.9)]
    some = [model(a), model(b), model(c)]
    out = {
        "task_arithmetic normalised": one("task_arithmetic", three, base, {"normalize": True}),
        "task_arithmetic with lambda": one("task_arithmetic", three, base, {"lambda": 1.4}),
        "ties rescaled": one("ties", dense, base, {"rescale": True}),
        "ties of signs in 8 bits": one("ties", dense, base, {"int8_mask": True, "lambda": 0.5}),
        "ties of one model": one("ties", dense[:1], base),
        "ties without trimming": one("ties", three, base),
        "breadcrumbs rescaled": one("breadcrumbs", gamma, base, {"rescale": True}),
        "breadcrumbs_ties normalised": one("breadcrumbs_ties", gamma, base, {"normalize": True}),
        "model_stock by filters": one("model_stock", some, base, {"filter_wise": True}),
        "model_stock of two": one("model_stock", some[:2], base),
        "nuslerp by rows": one("nuslerp", three[:2], None, {"nuslerp_flatten": False}),
        "nuslerp by columns": one(
            "nuslerp", three[:2], None, {"nuslerp_flatten": False, "nuslerp_row_wise": True}
        ),
        "nuslerp by rows, with a base": one("nuslerp", three[:2], base, {"nuslerp_flatten": False}),
        "multislerp with a base": one("multislerp", three, base),
        "multislerp as written": one("multislerp", three, None, {"normalize_weights": False}),
        "multislerp of two": one("multislerp", three[:2]),
        "karcher of two": one("karcher", some[:2]),
        "karcher, many steps": one("karcher", some, None, {"max_iter": 40, "tol": 1e-9}),
        "sce of all": one("sce", some, base),
        "sce of few": one("sce", some, base, {"select_topk": 0.05, "int8_mask": True}),
        "ram of three": one("ram", some, base, {"epsilon": 1e-2}),
        "ramplus_tl": one("ramplus_tl", some, base),
        "ramplus_tl, set": one("ramplus_tl", some[:2], base, {"r": 0.3, "alpha": 0.5}),
        "slerp at the ends": one("slerp", [model(b)], a, {"t": [0, 1]}),
        "slerp of a model with itself": one("slerp", [model(a), model(a)], a, {"t": 0.3}),
        "linear, weights that add up to 0": one(
            "linear", [model(a, weight=1.0), model(b, weight=-1.0)], None, {"normalize": False}
        ),
        "passthrough of one": one("passthrough", [model(a)]),
        "passthrough, scales by layers": one(
            "passthrough",
            [model(a, scale=[{"filter": "mlp", "value": [0.5, 1.5]}, {"value": 1.0}])],
        ),
        "dtype bfloat16 out": one("linear", three, None, None, out_dtype="bfloat16"),
        "dtype float16 out": one("ties", dense, base, None, out_dtype="float16"),
    }
    tied = {
        "ties rescaled on coarse changes": one(
            "ties",
            [model("llama/coarse1", weight=1.0, density=0.4)],
            "llama/coarse",
            {"rescale": True},
        )
    }
    random = {
        "dare_linear as drawn": one("dare_linear", dense, base, {"rescale": False}),
        "dare_ties with lambda": one("dare_ties", dense, base, {"lambda": 0.6}),
        "dare_ties normalised": one("dare_ties", dense, base, {"normalize": True}),
        "dare_ties by layers": one(
            "dare_ties", [model(a, weight=0.5, density=[0.9, 0.2]), dense[1]], base
        ),
        "della as summed": one(
            "della", dense, base, {"normalize": False, "epsilon": 0.2, "lambda": 1.1}
        ),
        "della as drawn": one("della", dense, base, {"rescale": False, "epsilon": 0.05}),
    }
    out |= {n: case._replace(differs=TIED) for n, case in tied.items()}
    return out | {n: case._replace(random=True) for n, case in random.items()}


def more_tokens() -> dict[str, Case]:
    """Choices of tokens."""
    base, a, b, _ = names("llama")
    chats = [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)]
    token = lambda m, t: {"kind": "model_token", "model": m, **t}
    rows = lambda source, **tokens: {"source": source, "tokens": tokens}
    return {
        "union by the long form": one("linear", chats, tokenizer={"source": "union"}),
        "base by the long form": one(
            "task_arithmetic", chats, base, tokenizer={"source": "base"}
        ),
        "a model by the long form": one("linear", chats, tokenizer={"source": "llama/chat2"}),
        "tokens of a model as a mapping": one(
            "linear", chats, tokenizer={"source": {"model": {"path": "llama/chat1"}}}
        ),
        "a row by its number": one(
            "linear",
            chats,
            tokenizer=rows("union", t9={"source": token("llama/chat2", {"token_id": 3}),
                                        "force": True}),
        ),
        "a row of one model": one(
            "linear", chats, tokenizer=rows("union", t9={"source": "llama/chat1", "force": True})
        ),
        "a row of one model unless there": one(
            "linear", chats, tokenizer=rows("union", **{"<|user|>": {"source": "llama/chat1"}})
        ),
        "a row of zeros": one(
            "ties",
            [model("llama/chat1", weight=0.5, density=0.5), model(b, weight=0.5, density=0.5)],
            base,
            tokenizer=rows("union", **{"<|im_end|>": {"source": {"kind": "zero"}}}),
        ),
        "union under slerp": one(
            "slerp", [model("llama/chat2")], "llama/chat1", {"t": 0.3}, tokenizer_source="union"
        ),
        "union under ties": one(
            "ties",
            [model("llama/chat1", weight=0.5, density=0.5),
             model("llama/chat2", weight=0.5, density=0.5)],
            base,
            tokenizer_source="union",
        ),
        "a stack with tokens of one": Case([{
            "merge_method": "passthrough", "dtype": "float32", "tokenizer_source": "llama/chat1",
            "slices": [
                {"sources": [{"model": "llama/chat1", "layer_range": [0, 3]}]},
                {"sources": [{"model": a, "layer_range": [1, 4]}]},
            ],
        }])._replace(differs=ABSENT),
        "a row by a mapping": one(
            "linear",
            chats,
            tokenizer=rows("union", t9={"source": {"model": {"path": "llama/chat1"}},
                                        "force": True}),
        ),
        "a union of equal vocabularies": one(
            "linear", [model(a, weight=0.5), model(b, weight=0.5)], tokenizer_source="union"
        ),
    }  # fmt: skip


def stages() -> dict[str, Case]:
    """Documents that build on each other."""
    base, a, b, c = names("llama")
    first = recipe("ties", [model(a, weight=1.0, density=0.5), model(b, weight=0.5, density=0.5)],
                   base, name="first")  # fmt: skip
    second = recipe("slerp", [model("first"), model(c)], c, {"t": 0.3}, name="second")
    return {
        "three documents": Case(
            [first, second, recipe("model_stock", [model("first"), model("second")], base)],
            "multi",
        ),
        "a document used twice": Case(
            [
                first,
                recipe("linear", [model("first", weight=0.5), model(c, weight=0.5)], name="x"),
                recipe("task_arithmetic", [model("first", weight=0.5), model("x", weight=0.25)],
                       base),
            ],
            "multi",
        ),
        "a document as the base": Case(
            [first, recipe("task_arithmetic", [model(c, weight=0.5)], "first")], "multi"
        ),
    }  # fmt: skip
