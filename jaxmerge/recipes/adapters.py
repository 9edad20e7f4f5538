"""Recipes of adapters: several LoRA adapters of one base become one adapter.

    adapters: [ad/math, ad/code, org/name@revision]
    method: {ties: {weights: [1, 1, 0.5], density: 0.5}}   # jaxmerge.io.adapters.combine
    out_dtype: bfloat16                                    # default: the adapters' own
    seed: 0                                                # of the ways with dare

The output is an adapter folder that PEFT loads.  To put adapters on their base instead, and merge
the models that come of it, write ``models: [base+ad/math, base+ad/code]``.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from jaxmerge.core.composition import keep_base
from jaxmerge.drivers.files.job import Job
from jaxmerge.errors import UserError
from jaxmerge.io.adapters import Adapter
from jaxmerge.io.adapters.combine import METHODS, Combination
from jaxmerge.io.opened_model import Source
from jaxmerge.io.sources import adapter_folder
from jaxmerge.recipes.parse import check_kinds, mapping
from jaxmerge.recipes.plan import Models, Plan, dtype_of, seed_of

SETTINGS = ("weights", "density", "rank", "sign")
KINDS = {
    "adapters": (list,), "method": (str, dict), "out_dtype": (str,), "seed": (int,),
    "name": (str,), "overflow": (str,), "resolved": (dict,),
}  # fmt: skip


@dataclasses.dataclass
class AdapterRecipe:
    """Adapters that become one.

    Attributes:
        adapters: folders, or repositories on the hub.
        method: a way to combine them (`jaxmerge.io.adapters.combine.METHODS`), by name or as
            ``{name: settings}``; settings are weights, density, rank and sign.
        out_dtype: of the factors.
        seed: of random masks.
        name, overflow, resolved: as in `jaxmerge.recipes.native.Recipe`.
    """

    adapters: list[str]
    method: Any
    out_dtype: str | None = None
    seed: int = 0
    name: str | None = None
    overflow: str | None = None
    resolved: dict[str, Any] | None = None

    @property
    def ignored(self) -> list[str]:
        """Keys that nothing reads: none, they are refused."""
        return []

    @classmethod
    def read(cls, content: Any) -> AdapterRecipe:
        """Check the document's keys."""
        content = mapping(content, "the recipe", [f.name for f in dataclasses.fields(cls)])
        check_kinds(content, KINDS)
        if not content.get("method"):
            raise UserError(f"a recipe of adapters needs a method: {', '.join(METHODS)}.")
        return cls(**content)

    def references(self) -> list[str]:
        """Every adapter that the recipe names."""
        return [r for r in self.adapters if isinstance(r, str)]

    def plan(self, models: Models) -> Plan:
        """Open the adapters and say how every leaf of the result comes about."""
        refs = self.adapters
        if not refs or not all(isinstance(r, str) for r in refs):
            raise UserError(f"adapters must be a list of folders, got {refs!r}.")
        mode, settings = self._method()
        adapters, sources = [], []
        for ref in refs:
            folder = adapter_folder(models.path(ref), models.near)
            adapter = Adapter(folder)
            source = Source(adapter.file, str(folder), folder, adapter.files, {})
            models.opened[ref] = source
            adapters.append(adapter)
            sources.append(source)
        seed = seed_of(self.seed)
        try:
            combination = Combination(adapters, mode, seed=seed, **settings)
        except UserError as error:
            raise UserError(f"method: {error}") from None
        leaves = combination.leaves()
        config = json.dumps(combination.config(), indent=2) + "\n"
        resolved: dict[str, Any] = {
            "adapters": [s.ref for s in sources], "method": {mode: settings}, "seed": seed,
        }  # fmt: skip
        if self.out_dtype:
            resolved["out_dtype"] = self.out_dtype
        return Plan(
            jobs=[Job(keep_base(), [leaves], leaves)],
            models=models,
            source=sources[0],
            out_dtype=dtype_of(self.out_dtype, "out_dtype"),
            seed=seed,
            resolved=resolved,
            method=f"{mode} of {len(refs)} adapters",
            files={"adapter_config.json": config.encode()},
            single="adapter_model.safetensors",
        )

    def _method(self) -> tuple[str, dict[str, Any]]:
        method = self.method
        if isinstance(method, str):
            return method, {}
        if "name" in method:
            method = {method["name"]: {k: v for k, v in method.items() if k != "name"}}
        if len(method) != 1:
            raise UserError(f"method must be a name or {{name: settings}}, got {self.method!r}.")
        ((mode, settings),) = method.items()
        return str(mode), mapping(settings or {}, f"method: {mode}", SETTINGS)
