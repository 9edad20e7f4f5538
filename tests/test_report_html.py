"""The page: well-formed, escaped, repeatable; in a browser quiet, narrow enough and readable."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from browser import Browser, find
from report_results import results

from jaxmerge import report
from jaxmerge.report import html, tables
from jaxmerge.studies.results import Results

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)> $x_1$ </style></svg>'
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags, ids and words, and complains where tags do not nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.ids, self.tags, self.words = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
        self.faults += [f"{tag} {k}" for k, _ in attrs if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        self.words.append(data)


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.faults == []
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def text():
    return html.page(results())


def test_page_is_well_formed_and_ids_are_unique(text):
    checker = check(text)
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.tags.count("svg") == 18  # nine pictures, light and dark
    assert checker.tags.count("h1") == 1


def test_a_page_makes_its_folder(tmp_path):
    assert html.write(results(), tmp_path / "a" / "b" / "page.html").stat().st_size > 1000


def test_page_needs_nothing_from_elsewhere(text):
    assert not re.search(r'(src|href)="(?!#|data:,)', text)
    assert not re.search(r"@import|url\((?!#)", text)
    loose = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "http:" not in loose
    assert "https:" not in loose


def test_page_repeats_and_survives_json(text, tmp_path):
    again = Results.from_json(results().to_json(tmp_path / "results.json"))
    assert html.page(again) == text


def test_every_word_of_the_results_is_escaped():
    r = results(label=EVIL)
    r.experiment = r.scenario = EVIL
    r.recipe = {EVIL: {"deep": [EVIL]}}
    r.versions = r.machine = {EVIL: EVIL}
    r.seconds = {EVIL: 1.0}
    for run in r.seeds:
        for task in run.tasks:
            task.name, task.classes = EVIL, [EVIL]
        for e in run.entries:
            e.method = EVIL
        for v in run.vectors:
            v.finetunes += EVIL
    checker = check(html.page(r))
    assert checker.tags.count("script") == 1
    assert "img" not in checker.tags
    assert sum("alert(1)" in w for w in checker.words) > 10


def test_characters_that_xml_cannot_hold_do_not_break_the_page(tmp_path):
    r = results(seeds=1, label="a\x00b\x1b[31mc\ud800\uffff\n漢字")
    r.recipe = {"\x08": ["\x0c"]}
    text = html.write(r, tmp_path / "report.html").read_text(encoding="utf-8")
    check(text)
    assert not re.search(r"[\x00-\x08\x0b\x1b\ud800\uffff]", text)
    assert "漢字" in text
    assert not any("\x1b" in str(c) for c in tables.rich_table(r).columns[0].cells)


def test_table_shows_the_figures(text):
    shown = "".join(check(text).words)
    for s in results().summary:
        assert f"{100 * s.metrics['accuracy'].mean:.1f}" in shown


def test_one_seed_and_empty_results():
    check(html.page(results(seeds=1, tasks=1)))
    empty = results(seeds=1)
    empty.seeds, empty.summary = [], []
    assert "No merge was measured" in html.page(empty)


def test_write_leaves_a_whole_run_folder(tmp_path):
    paths = report.write(results(seeds=1), tmp_path)
    assert [p.name for p in paths[-3:]] == ["table.md", "table.tex", "report.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "plots", "report.html", "table.md", "table.tex",
    ]  # fmt: skip
    assert len(list((tmp_path / "plots").glob("*.png"))) == 9


# ---------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser():
    path = find()
    if path is None:
        pytest.skip("no Chromium on this machine (install chromium, or set CHROMIUM to one)")
    with Browser(path) as b:
        yield b


@pytest.fixture(scope="module")
def page(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_page_is_quiet_and_has_no_horizontal_scroll(browser, page, width, scheme):
    browser.open(page, width, scheme)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") == width
    main_table = "document.querySelector('.wide')"
    assert browser.run(f"{main_table}.scrollWidth <= {main_table}.clientWidth")
    shown = browser.run(
        "[...document.querySelectorAll('svg')].filter(s => s.checkVisibility()).length"
    )
    assert shown == 8  # one of each pair


CONTRAST = """(() => {
  const rgb = (s) => s.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const out = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    if (!n.data.trim() || !e.checkVisibility() || e.closest("script")) continue;
    const style = getComputedStyle(e);
    const inside = e.closest("svg");
    let back = behind(e);
    if (inside) {  // words on a coloured cell stand after the cell in the same place
      const box = e.getBoundingClientRect();
      for (const p of inside.querySelectorAll("path")) {
        const b = p.getBoundingClientRect();
        const fill = getComputedStyle(p);
        const x = box.x + box.width / 2, y = box.y + box.height / 2;
        const over = b.x < x && x < b.right && b.y < y && y < b.bottom;
        const before = p.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING;
        if (over && before && fill.fill !== "none" && fill.fillOpacity === "1" &&
            b.width < inside.getBoundingClientRect().width * 0.9) back = rgb(fill.fill);
      }
    }
    const word = light(rgb(inside ? style.fill : style.color));
    const [x, y] = [word, light(back)].sort((a, b) => b - a);
    const ratio = (x + 0.05) / (y + 0.05);
    out.push([ratio, n.data.trim()]);
  }
  return out;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_has_contrast(browser, page, scheme):
    browser.open(page, 1200, scheme)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    ratios = browser.run(CONTRAST)
    assert len(ratios) > 500
    assert [pair for pair in ratios if pair[0] < 4.5] == []


def test_tables_sort_by_mouse_and_keyboard(browser, page):
    browser.open(page, 1200)
    column = (
        "[...document.querySelectorAll('table[data-sort] tbody tr')]"
        ".map(r => r.cells[3].dataset.value)"
    )
    before = browser.run(column)
    heads = "document.querySelectorAll('table[data-sort] th')"
    assert browser.run(f"{heads}[3].hasAttribute('aria-sort')") is False
    browser.run(f"{heads}[3].firstChild.click()")
    down = browser.run(column)
    assert browser.run(f"{heads}[3].getAttribute('aria-sort')") == "descending"
    numbers = [float(v) for v in down if v]
    assert numbers == sorted(numbers, reverse=True)
    assert down[len(numbers) :] == [""] * (len(down) - len(numbers))  # not measured: at the end
    browser.run(f"{heads}[3].firstChild.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                     windowsVirtualKeyCode=13)  # fmt: skip
    up = browser.run(column)
    assert browser.run(f"{heads}[3].getAttribute('aria-sort')") == "ascending"
    assert [v for v in up if v] == [v for v in down if v][::-1]
    assert sorted(up) == sorted(before)
    browser.run(f"{heads}[0].firstChild.click()")
    assert browser.run(f"[...{heads}].filter(h => h.hasAttribute('aria-sort')).length") == 1
    assert browser.complaints() == []


def test_theme_follows_the_system_until_somebody_chooses(browser, page):
    back = "getComputedStyle(document.documentElement).backgroundColor"
    button = "document.querySelector('.toggle')"
    browser.open(page, 1200, "dark")
    dark = browser.run(back)
    assert browser.run(f"{button}.textContent") == "Light"
    browser.run(f"{button}.click()")
    light = browser.run(back)
    assert light != dark
    browser.open(page, 1200, "dark")  # and the choice is kept
    assert browser.run(back) == light
    browser.run(f"localStorage.clear(); {button}.click()")
    assert browser.run(back) == dark
    browser.run("localStorage.clear()")


def test_injected_script_does_not_run(browser, text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text.replace("</main>", "<script>window.ran = 1</script></main>"))
    browser.open(path, 1200)
    assert browser.run("window.ran === undefined")  # the content security policy stops it
    assert any("Content Security Policy" in c for c in browser.complaints())
