"""Merging that optimises on data: FW-Merging, AdaMerging, learned masks, surgery, search."""

from jaxmerge.solvers.adamerging import adamerging
from jaxmerge.solvers.core import (
    Solver,
    cross_entropy,
    entropy,
    solve,
    task_vectors,
)
from jaxmerge.solvers.frank_wolfe import frank_wolfe, oracle_scores, soft_frank_wolfe
from jaxmerge.solvers.localize import localize, mask, top_share
from jaxmerge.solvers.regmean_plus import regmean_plus
from jaxmerge.solvers.search import SearchResult, cma_es, grid, random
from jaxmerge.solvers.surgery import bias, operate, surgery

__all__ = [
    "SearchResult",
    "Solver",
    "adamerging",
    "bias",
    "cma_es",
    "cross_entropy",
    "entropy",
    "frank_wolfe",
    "grid",
    "localize",
    "mask",
    "operate",
    "oracle_scores",
    "random",
    "regmean_plus",
    "soft_frank_wolfe",
    "solve",
    "surgery",
    "task_vectors",
    "top_share",
]
