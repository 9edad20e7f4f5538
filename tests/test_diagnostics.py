"""Diagnostics against plain numpy on the flattened model, and the command on files."""

from __future__ import annotations

import json

import laws
import numpy as np
import pytest

from jaxmerge import diagnostics
from jaxmerge.diagnostics import diagnose, effective_rank

BASE = laws.model(0)
MODELS = [laws.model(1 + t, BASE) for t in range(3)]


def flat(model: dict) -> np.ndarray:
    return np.concatenate([(model[n] - BASE[n]).ravel() for n in laws.SHAPES])


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_every_figure_equals_numpy_on_the_flattened_model(monkeypatch, block):
    monkeypatch.setattr(diagnostics, "BLOCK", block)
    still = BASE | {"norm/scale": MODELS[0]["norm/scale"]}  # changes one leaf only
    models = [*MODELS, still]
    diagnosis = diagnose(BASE, models, density=0.2)
    rows = np.stack([flat(m) for m in models]).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(diagnosis.whole.norms, norms, rtol=1e-7)
    np.testing.assert_allclose(
        diagnosis.whole.cosine, rows @ rows.T / np.outer(norms, norms), atol=1e-7
    )
    both = (rows[:, None] != 0) & (rows[None] != 0)
    opposed = np.sign(rows)[:, None] * np.sign(rows)[None] < 0
    np.testing.assert_array_equal(diagnosis.whole.conflict, opposed.sum(-1) / both.sum(-1))
    k = rows.shape[1] - int(0.8 * rows.shape[1])  # as TIES counts: the smallest 80 % go
    top = [set(np.argsort(-np.abs(row))[: min(k, (row != 0).sum())]) for row in rows]
    shared = [[len(a & b) / np.sqrt(len(a) * len(b)) for b in top] for a in top]
    np.testing.assert_allclose(diagnosis.whole.overlap, shared, rtol=1e-12)
    assert diagnosis.whole.size == rows.shape[1]


def test_leaves_add_up_and_what_is_undefined_is_nan():
    diagnosis = diagnose(BASE, [*MODELS, BASE])
    np.testing.assert_allclose(diagnosis.whole.dot, sum(p.dot for p in diagnosis.leaves.values()))
    assert np.isnan(diagnosis.whole.cosine[3]).all()
    assert set(diagnosis.ranks) == {n for n, s in laws.SHAPES.items() if len(s) > 1}
    assert diagnosis.ranks["patch/kernel"][3] == 0


def test_effective_rank_is_the_entropy_of_the_singular_values():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 9))
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    for y in (x, x.T, 1e-3 * x):
        np.testing.assert_allclose(effective_rank(y), expected, rtol=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="nothing to compare"):
        diagnose(BASE, [])
    with pytest.raises(ValueError, match=r"model 1 does not fit(.|\n)*missing leaf 'norm/scale'"):
        diagnose(BASE, [BASE, {n: x for n, x in BASE.items() if n != "norm/scale"}])
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        diagnose(BASE, MODELS, density=0)


def test_the_command_prints_tables_and_draws_heat_maps(tmp_path, capsys, monkeypatch):
    from safetensors.numpy import save_file

    from jaxmerge.cli import compare
    from jaxmerge.errors import UserError

    monkeypatch.setenv("COLUMNS", "160")
    refs = []
    for name, model in zip(("base", "cars", "dtd"), (BASE, *MODELS[:2]), strict=True):
        refs.append(str(tmp_path / f"{name}.safetensors"))
        save_file(model, refs[-1])
    compare.run(refs[1:], base=refs[0], out=tmp_path / "out")
    printed = capsys.readouterr().out
    assert "Cosine of the task vectors" in printed
    assert all(n in printed for n in ("block_0/query/kernel", "logit_scale", "cars", "dtd"))
    facts = json.loads((tmp_path / "out" / "compare.json").read_text())
    expected = diagnose(BASE, MODELS[:2])
    assert facts["whole"]["cosine"][0][1] == pytest.approx(expected.whole.cosine[0, 1], abs=1e-9)
    assert len(facts["leaves"]["patch/kernel"]["effective_rank"]) == 2
    for picture in ("cosines.png", "entries.png", "layers.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    compare.run(refs, json=True)  # the first is the base
    assert json.loads(capsys.readouterr().out)["whole"] == facts["whole"]
    with pytest.raises(UserError, match="at least one model besides the base"):
        compare.run(refs[:1])
