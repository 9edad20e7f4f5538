"""Draws the rooms of the package and who imports whom, before and after a change of the layout.

    python experiments/draw_layout.py                     # writes docs/images/layout.svg
    python experiments/draw_layout.py --before REV        # beside another revision

A room is a folder of the package, or a module that lies flat in its root.  Rows import columns;
rooms are in the order of their imports, so that every square lies left of the diagonal.  A red
square is an import upwards: it closes a circle of rooms.  Imports within functions count, those for
types alone do not.  Prints the figures that the picture shows, and exits with 1 where there is a
circle of modules or where more than ten modules lie in the root.
"""

from __future__ import annotations

import argparse
import ast
import collections
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "jaxmerge"
MAX_MODULES = 10  # modules in the root

Graph = dict[str, set[str]]


def sources(revision: str | None) -> dict[str, str]:
    """Module -> its text, of the working tree or of a revision."""
    if revision is None:
        paths = sorted((ROOT / PACKAGE).rglob("*.py"))
        texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}
    else:
        git = lambda *a: (
            subprocess.run(
                ["git", "-C", str(ROOT), *a], check=True, capture_output=True, text=True
            ).stdout
        )
        names = git("ls-tree", "-r", "--name-only", revision, PACKAGE).split()
        texts = {n: git("show", f"{revision}:{n}") for n in names if n.endswith(".py")}
    return {n.removesuffix(".py").replace("/", "."): t for n, t in texts.items()}


def imports(texts: dict[str, str]) -> Graph:
    """Module -> the modules that it imports; a package stands for its ``__init__``."""
    known = {n.removesuffix(".__init__") for n in texts}
    graph: Graph = {}
    for name, text in texts.items():
        me = name.removesuffix(".__init__")
        package = me if name.endswith(".__init__") else me.rpartition(".")[0]
        modules = set()
        for node in running(ast.parse(text)):
            if isinstance(node, ast.Import):
                modules |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                start = ".".join(above) if node.level else ""
                source = ".".join(filter(None, (start, node.module)))
                for a in node.names:
                    inside = f"{source}.{a.name}"
                    modules.add(inside if inside in known else source)
        graph[me] = {f for f in modules if f in known and f != me}
    return graph


def running(tree: ast.AST):
    """All statements but those that only a type checker sees; no expression holds an import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        yield node
        yield from running(node)


def rooms(graph: Graph) -> tuple[Graph, collections.Counter]:
    """The same with folders (and modules of the root) for modules, and the imports between them."""
    room = lambda m: ".".join(m.split(".")[:2])
    between: Graph = {room(m): set() for m in graph}
    count: collections.Counter = collections.Counter()
    for m, targets in graph.items():
        for t in targets:
            if room(m) != room(t) and t != PACKAGE and m != PACKAGE:
                between[room(m)].add(room(t))
                count[room(m), room(t)] += 1
    between.pop(PACKAGE, None)
    return between, count


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected parts of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in sorted(graph[v]):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            part = stack[stack.index(v) :]
            del stack[stack.index(v) :]
            if len(part) > 1:
                out.append(sorted(part))

    for v in sorted(graph):
        if v not in index:
            visit(v)
    return out


def in_order(graph: Graph) -> list[str]:
    """Rooms with what they import before them, as far as there is such an order."""
    left, out = {n: set(t) for n, t in graph.items()}, []
    while left:
        free = sorted(n for n, t in left.items() if not t & left.keys())
        free = free or [min(left, key=lambda n: (len(left[n] & left.keys()), n))]
        out += free
        for n in free:
            del left[n]
    return out


def draw(sides: list[tuple[str, dict[str, str]]], path: Path) -> int:
    """Write the picture, print its figures; how many rules the last side breaks."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    matplotlib.rcParams["svg.hashsalt"] = "layout"
    figure = Figure(figsize=(8.5 * len(sides), 9), layout="constrained")
    broken = 0
    for axes, (title, texts) in zip(
        figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True
    ):
        graph = imports(texts)
        between, count = rooms(graph)
        order = in_order(between)
        flat = [r for r in between if r in graph and f"{r}.__init__" not in texts]
        modules = {m for m in graph if f"{m}.__init__" not in texts}
        rounds = circles({m: graph[m] & modules for m in modules})
        up = 0
        for (a, b), n in count.items():
            y, x = order.index(a), order.index(b)
            upwards = x > y
            up += upwards
            shade = (0.79, 0.16, 0.16) if upwards else (0.16, 0.39, 0.72)
            style = {"color": shade, "alpha": min(1, 0.25 + n / 12)}
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **style))
        axes.plot([-0.5, len(order) - 0.5], [-0.5, len(order) - 0.5], color="0.8", lw=0.8)
        labels = [r.removeprefix(f"{PACKAGE}.") + ("/" if r not in flat else ".py") for r in order]
        axes.set_xticks(range(len(order)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(order)), labels, fontsize=8)
        axes.set(xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5), aspect="equal")
        summary = (
            f"{title}: {len(order)} rooms, {len(flat)} modules in the root, {len(count)} arrows, "
            f"{up} upwards, {len(rounds)} circles of modules"
        )
        axes.set_title(summary.replace(": ", "\n"), fontsize=10)
        print(summary, *(f"\n  circle: {', '.join(c)}" for c in rounds))
        broken = (len(flat) > MAX_MODULES) + len(rounds)
    figure.savefig(path, metadata={"Date": None})
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", help="a revision to draw beside the working tree")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "layout.svg")
    options = parser.parse_args()
    sides = [("Now", sources(None))]
    if options.before:
        sides.insert(0, ("Before", sources(options.before)))
    return min(1, draw(sides, options.out))


if __name__ == "__main__":
    sys.exit(main())
