"""The page of the data-driven experiment is made from its result files."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def load():
    path = ROOT / "experiments" / "data_driven_page.py"
    spec = importlib.util.spec_from_file_location("data_driven_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_result_files():
    module = load()
    page = module.PAGE.read_text()
    assert module.fill(page) == page, "run python experiments/data_driven_page.py"


def test_best_figures_are_bold_and_missing_ones_a_dash():
    row = {"accuracy": 0.5, "normalised": 0.6, "retained": 0.9, "sees": "nothing"}
    better = {**row, "accuracy": 0.7, "cpu_seconds": 12.3, "peak_memory": 5e6}
    zero = {**row, "accuracy": 0.9, "normalised": 0.9}
    rows = [{"method": n, **r} for n, r in (("zero-shot", zero), ("a", row), ("b", better))]
    lines = load().table({"rows": rows, "individual": [0.8, 1.0]}).splitlines()
    assert lines[2] == "| zero-shot | nothing | 90.0 | 90.0 | 90.0 | – | – |"
    assert lines[3] == "| a | nothing | 50.0 | **60.0** | 90.0 | – | – |"
    assert lines[4] == "| b | nothing | **70.0** | **60.0** | 90.0 | 12 | 5 |"
    assert lines[5] == "| individual models | – | 90.0 | 100.0 | – | – | – |"
