"""Pictures over what was swept, and rows of one stream under several settings kept apart."""

import json

import numpy as np
import pytest

from jaxmerge.report import swept
from jaxmerge.studies.gather import gather


def row(lr=0.1, strength=None, fixed=None, seed=0, accuracy=0.5, stream="sequential"):
    settings = {"lr": lr, "epochs": 3, "name": "x", "stream": {"start": "last"}}
    if strength is not None:
        settings["stream"]["methods"] = [{"method": "l2", "strength": strength}]
    merge = "MagMax"
    return {
        "key": repr((lr, strength, fixed, seed, stream)), "experiment": "toy",
        "scenario": "clouds", "settings": json.dumps(settings, sort_keys=True),
        "stream": stream, "label": merge, "merge": merge, "method": "magmax(factor=0.5)",
        "factor": 0.5, "fixed": fixed, "seed": seed, "order_seed": None, "order": [0, 1],
        "tasks": [{"name": "a", "classes": ["x"], "train": 1, "val": 1, "test": 1}] * 2,
        "matrix": [[accuracy] * 2] * 2, "matrix_aware": [[accuracy] * 2] * 2, "sweep": None,
        "accuracy": accuracy, "forgetting": 1 - accuracy, "seconds": 1.0, "version": "0",
        "device": "cpu", "made": f"2026-01-01T00:00:0{seed}",
    }  # fmt: skip


def test_one_setting_is_a_line_and_its_values_are_means_over_seeds(tmp_path):
    rows = [row(lr, seed=s, accuracy=lr + s / 10) for lr in (0.1, 0.2, 0.4) for s in (0, 1)]
    assert swept.axes(rows) == ["lr"]
    (plot,) = swept.of(rows)
    assert plot.name == "sweep_lr"
    assert [r[1] for r in plot.tables[0].rows] == ["15.0", "25.0", "45.0"]
    assert swept.write_png(rows, tmp_path / "plots") == 1
    assert (tmp_path / "plots" / "sweep_lr.png").read_bytes().startswith(b"\x89PNG")


def test_two_settings_are_a_heat_map_of_any_shape(tmp_path):
    rows = [row(lr, fixed=f, accuracy=lr * f) for lr in (0.1, 0.2) for f in (0.5, 1.0, 2.0)]
    (plot,) = swept.of(rows)
    assert plot.name == "sweep_factor_lr"
    assert plot.tables[0].head == ["factor", "0.1", "0.2"]
    assert plot.tables[0].rows[-1] == ["2", "20.0", "40.0"]
    assert swept.write_png(rows, tmp_path) == 1


def test_of_three_settings_each_is_a_line_at_the_best_of_the_others():
    values = [(lr, s, f) for lr in (0.1, 0.2) for s in (1.0, 2.0) for f in (0.5, 1.0)]
    rows = [row(lr, s, f, accuracy=lr * s * f) for lr, s, f in values]
    plots = {p.name: p for p in swept.of(rows)}
    assert set(plots) == {"sweep_lr", "sweep_factor", "sweep_stream_methods_0_strength"}
    assert plots["sweep_lr"].tables[0].rows == [["0.1", "20.0"], ["0.2", "40.0"]]
    worst = {p.name: p for p in swept.of(rows, "forgetting")}
    assert worst["sweep_lr"].tables[0].rows == [["0.1", "80.0"], ["0.2", "60.0"]]


def test_nothing_swept_is_no_picture(tmp_path):
    assert swept.of([row(seed=s) for s in (0, 1)]) == []
    assert swept.write_png([row()], tmp_path / "plots") == 0
    assert not (tmp_path / "plots").exists()


def test_one_stream_under_two_settings_of_its_own_is_two_rows_of_a_table():
    rows = [row(strength=s, stream="L2", accuracy=s / 10) for s in (1.0, 4.0)]
    rows.append(row(accuracy=0.9))
    (results,) = gather(rows).values()
    means = {s.finetunes: s.metrics["accuracy"].mean for s in results.summary}
    assert means == {
        "L2, methods.0.strength 1.0": pytest.approx(0.1),
        "L2, methods.0.strength 4.0": pytest.approx(0.4),
        "sequential": pytest.approx(0.9),
    }
    assert np.isfinite(list(means.values())).all()
