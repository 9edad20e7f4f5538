"""Recipes about tokens, several documents, and raw files."""

from __future__ import annotations

from recipes import Case, Difference, model, names, one, recipe

PADDED = Difference(
    "padding rows are zero here, the mean of all rows there",
    ("lm_head.weight", "embed_tokens.weight"), entries=160,
)  # fmt: skip


def vocabularies() -> dict[str, Case]:
    """Unions of vocabularies and rows by token."""
    base, a, b, c = names("llama")
    return {
        "union of vocabularies": one(
            "linear",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            tokenizer_source="union",
        ),
        "union over a base": one(
            "task_arithmetic",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            base,
            tokenizer_source="union",
        ),
        "tokens of the base": one(
            "linear",
            [model(a, weight=0.5), model("llama/chat2", weight=0.5)],
            base,
            {"weight": 0.2},
            tokenizer_source="base",
        ),
        "tokens of a model": one(
            "linear",
            [model(a, weight=0.5), model("llama/chat1", weight=0.5)],
            tokenizer_source="llama/chat1",
        ),
        "rows by token": one(
            "linear",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            tokenizer={
                "source": "union",
                "tokens": {
                    "<|user|>": {
                        "source": {"kind": "model_token", "model": "llama/chat1", "token": "t5"}
                    },
                    "<|im_end|>": {"source": "llama/chat1", "force": True},
                    "t7": {"source": {"kind": "zero"}, "force": True},
                },
            },
        ),
        "a new token": one(
            "linear",
            [model(a, weight=0.5), model(b, weight=0.5)],
            tokenizer={
                "source": "union",
                "tokens": {
                    "<|new|>": {"source": {"kind": "model_token", "model": a, "token": "t3"}}
                },
            },
        ),
        "padded vocabulary": one(
            "linear",
            [model("llama/chat1", weight=0.5), model("llama/chat2", weight=0.5)],
            tokenizer={"source": "union", "pad_to_multiple_of": 8},
        )._replace(differs=PADDED),
        "tokenizer twice": one(
            "linear",
            [model(a, weight=1.0), model(b, weight=1.0)],
            tokenizer_source="union",
            tokenizer={"source": "union"},
        ),
        "two documents": Case(
            [
                recipe("linear", [model(a, weight=1.0), model(b, weight=1.0)], name="first"),
                recipe("task_arithmetic", [model("first", weight=0.5), model(c, weight=0.5)], base),
            ],
            "multi",
        ),
        "documents in the other order": Case(
            [
                recipe(
                    "task_arithmetic", [model("second", weight=0.5), model(c, weight=0.5)], base
                ),
                recipe("slerp", [model("first"), model(b)], b, {"t": 0.4}, name="second"),
                recipe("linear", [model(a, weight=1.0), model(b, weight=1.0)], name="first"),
            ],
            "multi",
        ),
        "raw, what all have": raw("--tensor-intersection"),
        "raw, what any has": raw("--tensor-union"),
        "raw, neither": raw(),
    }


def raw(*options: str) -> Case:
    """Two files of which each lacks a leaf of the other, as `mergekit-pytorch` takes them."""
    files = ("llama/raw1.safetensors", "llama/raw2.safetensors")
    return Case([recipe("linear", [model(f, weight=0.5) for f in files])], "raw", options=options)
