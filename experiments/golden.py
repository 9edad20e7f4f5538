"""How near every method comes to the outputs of the original codes: the golden differences.

    JAXMERGE_SHARED=... python experiments/golden.py     # some three minutes on two cores

Every expected file in ``$JAXMERGE_SHARED/golden`` (default ``../shared``) is merged again, with the
same spelling as in the tests, in memory (`jaxmerge.merge`) and leaf by leaf from files
(`jaxmerge.merge_files`, or mergekit's own recipe), and the largest absolute difference is noted.
Where a value is not reproduced on purpose, `DEPARTS` says so: how many entries, by how much, why.

Writes `experiments/results/golden.json` and `.md`; fails where a difference exceeds its tolerance.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

import jaxmerge as jm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
sys.path.insert(0, str(ROOT / "tests"))
import test_golden_clip as clip  # noqa: E402
import test_golden_geometric_b as geometric  # noqa: E402
import test_golden_mergekit as mergekit  # noqa: E402
import test_recipes_mergekit as recipes  # noqa: E402

# Entries that differ by intent: how many, and why.
DEPARTS = {
    "breadcrumbs": (
        6 * 16,
        "leaves of 16 entries, where floor(gamma n) = 0: mergekit drops all, here none at the top",
    ),
    "breadcrumbs_ties": (6 * 16, "the same leaves as in breadcrumbs"),
    "arcee_fusion": (
        4,
        "entries at the threshold, on whose side the cancellation in a float32 divergence decides",
    ),
}
SPELLED = {"ta_gradient": "the recipe", "slerp_gradient": "by_leaf(slerp, t by layer)"}
BARE = "embeddings.class_embedding"
OPCM = (
    "the class embedding, no leaf module's parameter in the released code, is never merged there; "
    "it is here, and so the common norm differs: all else is compared up to that one factor"
)
TIED = "rows 0 and 1 of one kernel, whose exact ties do not survive the rounding to float32"


def main() -> None:
    shared = Path(os.environ.get("JAXMERGE_SHARED", ROOT.parent / "shared")) / "golden"
    rows = []
    for row in (*of_mergekit(shared / "mergekit"), *of_clip(shared / "clip_vision")):
        rows.append(row)
        print(json.dumps(row), flush=True)
    write(rows)
    print((RESULTS / "golden.md").read_text())
    wrong = [r["file"] for r in rows if max(r["memory"] or 0, r["files"] or 0) > r["tolerance"]]
    if wrong:
        raise SystemExit(f"Beyond the tolerance: {', '.join(wrong)}")


def of_mergekit(folder: Path) -> Iterator[dict[str, Any]]:
    """float32 checkpoints in the format of Qwen2, against mergekit 0.1.4."""
    names = ("base", "ft0", "ft1", "ft2", "ft3")
    base, *models = (load_file(folder / "models" / n / "model.safetensors") for n in names)
    based = {n: (make(), base, mergekit.FEWER.get(n, 4)) for n, make in mergekit.CASES.items()}
    free = {n: (make(), None, 4) for n, make in mergekit.NO_BASE.items()}
    bent = {n: (m, base if b else None, k) for n, (m, b, k) in geometric.CASES.items()}
    cases = based | free | bent | {"arcee_fusion": (jm.arcee_fusion(), base, 1)}
    for name in recipes.RECIPES:
        want = load_file(folder / "expected" / f"{name}.safetensors")
        memory = None
        if name in cases:
            method, start, count = cases[name]
            memory = jm.merge(method, start, models[:count], key=jax.random.key(0))
        with tempfile.TemporaryDirectory() as out:
            path = Path(out) / "out"
            recipes.run(folder / "configs" / f"{name}.yaml", path, folder / "models")
            files = load_file(path / "model.safetensors")
        spelled = SPELLED.get(name) or repr(cases[name][0])
        yield compared(f"mergekit/{name}", spelled, want, memory, files, "float32", 1e-6)


def of_clip(folder: Path) -> Iterator[dict[str, Any]]:
    """A float64 CLIP tower: MagMax's official code, and a transcription of OPCM's recursion."""
    paths = [folder / f"{n}.safetensors" for n in ("base", "ft0", "ft1", "ft2", "ft3")]
    base, *models = map(load_file, paths)
    small = lambda model: {n: x.astype(np.float32) for n, x in model.items()}
    expected = lambda name: load_file(folder / "expected" / f"{name}.safetensors")
    for name, make in clip.CASES.items():
        want, method = expected(name), make()
        memory = jm.merge(method, small(base), [small(m) for m in models])
        tied = float(np.abs(memory[clip.TIED][:2] - want[clip.TIED][:2]).max())
        for tree in (want, memory):
            tree[clip.TIED] = tree[clip.TIED][2:] if tied > 1e-6 else tree[clip.TIED]
        row = compared(f"clip/{name}", repr(method), want, memory, None, "float32", 1e-6)
        yield row | ({"departs": {"largest": tied, "why": TIED}} if tied > 1e-6 else {})
        with jax.enable_x64(True):
            memory, files = jm.merge(method, base, models), from_files(method, paths)
        want = expected(name)
        yield compared(f"clip/{name}", repr(method), want, memory, files, "float64", 1e-12)
    for file in sorted((folder / "expected").glob("opcm*.safetensors")):
        _, alpha, diagonal, step = file.stem.split("_")
        method = jm.opcm(alpha=float(alpha[5:]), zero_diag=diagonal[-1] == "1")
        count = int(step[4:]) + 1
        with jax.enable_x64(True):
            memory = jm.merge(method, base, models[:count])
            files = from_files(method, paths[: 1 + count])
        want = load_file(file)
        spread = max(float(np.abs(memory[n] - want[n]).max()) for n in want)
        memory, files = (up_to_one_factor(x, want, base) for x in (memory, files))
        del want[BARE]
        row = compared(f"clip/{file.stem}", repr(method), want, memory, files, "float64", 1e-12)
        yield row | {"departs": {"largest": spread, "why": OPCM}}


def from_files(method: jm.Merge, paths: list[Path]) -> Mapping[str, np.ndarray]:
    """What the file driver makes of these checkpoints."""
    with tempfile.TemporaryDirectory() as out:
        jm.merge_files(method, base=paths[0], models=paths[1:], out=Path(out) / "out")
        return load_file(Path(out) / "out" / "model.safetensors")


def up_to_one_factor(result: Mapping, want: Mapping, base: Mapping) -> dict[str, np.ndarray]:
    """`result` with its change at the scale of that of `want`, without the class embedding."""
    leaf = "encoder.layers.0.mlp.fc1.weight"
    ours, theirs = result[leaf] - base[leaf], want[leaf] - base[leaf]
    factor = np.vdot(theirs, theirs) / np.vdot(ours, theirs)
    return {n: base[n] + factor * (result[n] - base[n]) for n in want if n != BARE}


def compared(
    file: str, method: str, want: Mapping, memory: Any, files: Any, dtype: str, tolerance: float
) -> dict[str, Any]:
    """One row: the largest differences where none is intended, and what departs by intent."""
    name = file.split("/")[1]
    gaps = [
        None if out is None else np.concatenate([np.abs(out[n] - want[n]).ravel() for n in want])
        for out in (memory, files)
    ]
    row: dict[str, Any] = {"file": file, "method": method, "dtype": dtype, "tolerance": tolerance}
    if name in DEPARTS:
        count, why = DEPARTS[name]
        counts = [(int(np.sum(g > tolerance)), float(g.max())) for g in gaps if g is not None]
        row["departs"] = {"entries": max(n for n, _ in counts), "largest": counts[0][1], "why": why}
        if any(n > count for n, _ in counts):
            raise SystemExit(f"{file}: {counts} entries differ, {count} are accounted for")
        gaps = [None if g is None else g[g <= tolerance] for g in gaps]
    row["memory"], row["files"] = (None if g is None else float(g.max()) for g in gaps)
    return row


def write(rows: list[dict[str, Any]]) -> None:
    """JSON with everything, Markdown with the table."""
    figure = lambda x: "" if x is None else f"{x:.1e}"
    lines = [
        "# Golden differences",
        "",
        "`python experiments/golden.py`: the largest absolute difference between a merge and what "
        "the original code makes of the same checkpoints, weights of order 0.1 and changes of "
        "order 0.01.  `mergekit/` against mergekit 0.1.4; `clip/` against MagMax's official code "
        "and, for OPCM, against a float64 transcription of the published recursion.",
        "",
        "| Expected | Method | dtype | In memory | From files | Tolerance | By intent |",
        "|:--|:--|:--|--:|--:|--:|:--|",
    ]
    notes: dict[str, int] = {}
    for r in rows:
        note = ""
        if departure := r.get("departs"):
            number = notes.setdefault(departure["why"], len(notes) + 1)
            entries = f"{departure['entries']} entries, " if "entries" in departure else ""
            largest = f"up to {departure['largest']:.1e} " if "largest" in departure else ""
            note = f"{entries}{largest}({number})"
        cells = [f"`{r['file']}`", f"`{r['method']}`", r["dtype"], figure(r["memory"])]
        cells += [figure(r["files"]), f"{r['tolerance']:.0e}", note]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "By intent:", ""] + [f"{i}. {why}." for why, i in notes.items()]
    (RESULTS / "golden.json").write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    (RESULTS / "golden.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
