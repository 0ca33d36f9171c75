"""Whatever a model, a user or a file says is shown as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.plan import Trial
from orchestrator.report.build import Report
from orchestrator.report.writers.files import write_report
from orchestrator.report.writers.html import render_page
from orchestrator.report.writers.latex import escape_latex, render_first_table, render_latex
from orchestrator.report.writers.markdown import escape_markdown as escape_markdown
from orchestrator.report.writers.markdown import render_markdown

from ....browser import needs_browser, open_browser
from ..conftest import STUDY, FinishedStudy

Run = Callable[..., FinishedStudy]
SCRIPT = '<script>alert("x")</script><img src=x onerror=alert(1)>'
LONG = "wordwithoutend" * 720  # 10 kB in one word
RIGHT_TO_LEFT = "\u202eأرى قمرًا أحمر ונגמר"
EMOJI = "👩‍👩‍👧 🌙 | `x` **b** [a](http://b) $1$ \ufffd"
ANSWERS = [SCRIPT, LONG, RIGHT_TO_LEFT, EMOJI]
ODD = STUDY.replace("question: Which?", f"question: {json.dumps('Which? ' + SCRIPT)}").replace(
    "  objective: [dpo, chip]",
    """  objective:
    dpo: {objective: dpo}
    "<b>λ & 100 % \\\\_#{}$^~ é ł r̂ 漢 🌙": {objective: chip}""",
)
ODD += f"published: [{{source: {json.dumps(SCRIPT)}, arm: base, values: {{shapes/chair_i: 1}}}}]\n"


def make_response(trial: Trial, item: int) -> dict[str, Any]:
    text = ANSWERS[item % 4].replace("\ufffd", "\x00")
    return {"response": text, "prompt": text[:60], "truth": text[:60]}


@pytest.fixture
def report(make_finished_study: Run, blank_figures: None) -> Report:
    return make_finished_study(ODD, response=make_response).make_report()


class PageParser(HTMLParser):
    """What a browser makes of a page: its elements and the texts of its answers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.answers: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if dict(attrs).get("class") == "said":
            self._inside = True
            self.answers.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "div"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.answers[-1] += data


def test_in_the_page_answers_are_text(report: Report) -> None:
    text = render_page(report)
    found = PageParser(text)
    assert set(ANSWERS) <= set(found.answers)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "b", "iframe", "object", "link", "base", "form"}
    assert not [name for _, given in found.elements for name in given if name.startswith("on")]
    assert "<bdi>&lt;b&gt;λ &amp; 100 %" in text


def test_the_page_needs_nothing_else(report: Report) -> None:
    found = PageParser(render_page(report))
    for tag, given in found.elements:
        if tag == "img":
            assert str(given["src"]).startswith("data:image/")
        assert not {"href", "srcset", "action"} & set(given) or str(given["href"]).startswith("#")
    policy = next(given for tag, given in found.elements if "http-equiv" in given)
    assert str(policy["content"]).startswith("default-src 'none';")
    style = render_page(report).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_answers_keep_the_layout(report: Report) -> None:
    """A word of 10 kB breaks and scrolls; text from right to left stays in its cell."""
    found = PageParser(render_page(report))
    said = [given for _, given in found.elements if given.get("class") == "said"]
    assert said and all(given["dir"] == "auto" for given in said)
    style = render_page(report).split("<style>")[1].split("</style>")[0]
    rule = re.search(r"\.said \{(.*?)\}", style)
    assert rule is not None
    assert {"overflow-wrap: anywhere", "overflow: auto", "max-height: 12em"} <= {
        part.strip() for part in rule[1].split(";")
    }
    assert "table-layout: fixed" in style


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_it_in_its_width(report: Report, tmp_path: Path) -> None:
    """No part is wider than the window, but tables that scroll inside of their box."""
    # The page's own policy forbids scripts: the measuring one comes from a copy without it.
    text = re.sub(r"<meta http-equiv[^>]*>", "", render_page(report))
    measure = (
        "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth + ' ' + "
        "document.querySelectorAll('script').length</script>"
    )
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", f"{measure}</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,800",
               f"file://{file}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title is not None, done.stderr[-500:]
    width, window, scripts = map(int, title.groups())
    assert width <= window
    assert scripts == 1  # the measuring one


@pytest.mark.e2e
@needs_browser
def test_a_browser_shows_every_answer_as_text(report: Report, tmp_path: Path) -> None:
    """Markup stays text, a word of 10 kB scrolls in its cell, Hebrew and Arabic run leftwards."""
    file = tmp_path / "page.html"
    file.write_text(render_page(report), encoding="utf-8")
    with open_browser(tmp_path) as window:
        for width in (1100, 500):
            window.resize(width, 900)
            window.open(file)
            shown = window.run(_LOOK)
            texts = {entry["text"] for entry in shown["answers"]}
            assert set(ANSWERS) <= texts
            for entry in shown["answers"]:
                assert entry["elements"] == 0
                assert entry["height"] < 300  # 12em: what is longer scrolls inside
                assert entry["wide"] == 0  # nothing runs out at its side
                # Each has a truth that begins like it, and direction is by the first strong letter.
                wanted = "rtl" if entry["text"].startswith("\u202e") else "ltr"
                assert entry["direction"] == wanted, entry["text"][:20]
            assert shown["page"] == 0 and shown["scripts"] == 0
            assert shown["title"] == "small"
        assert not [entry for entry in window.log() if entry["level"] == "SEVERE"]


_LOOK = """
const root = document.documentElement;
return {
  answers: [...document.querySelectorAll(".said")].map((place) => ({
    text: place.textContent, elements: place.children.length,
    height: place.getBoundingClientRect().height, wide: place.scrollWidth - place.clientWidth,
    direction: getComputedStyle(place).direction,
  })),
  page: root.scrollWidth - root.clientWidth, scripts: document.scripts.length,
  title: document.title,
};
"""


def test_in_markdown_answers_are_text(report: Report) -> None:
    text = render_markdown(report)
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert "&lt;script>alert" in text
    assert max(map(len, text.splitlines())) < 5000  # long answers are cut, and their length said
    assert "(10,080 characters)" in text
    widths = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in text.split("### ")[1].splitlines()
        if line.startswith("|")
    }
    assert widths == {6}  # a bar in an answer makes no column


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("shapes/chair_i _a_", r"shapes/chair_i \_a\_"),
        ("a < b & c > d", "a < b & c > d"),
        ("[0.1, 2] ![x](y) [z]: u", r"[0.1, 2] ![x\](y) [z\]: u"),
        ("</td>&lt;", "&lt;/td>&amp;lt;"),
        ("1. first", r"1\. first"),
        ("- +1\n# x", r"\- +1 # x"),
        ("a|b\\|c", r"a\|b\\\|c"),
    ],
)
def test_markdown_escapes_what_would_be_markup_and_no_more(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("50 % of a_b & c#1", r"50 \% of a\_b \& c\#1"),
        ("\\input{x} $1 ~ ^", r"\textbackslash{}input\{x\} \$1 \textasciitilde{} "
         r"\textasciicircum{}"),
        ("−1 ± 2 → δ λ", r"$-$1 $\pm$ 2 $\to$ $\delta$ $\lambda$"),
        ("é ï r̂ ł", r"\'{e} \"{\i} \^{r} \l{}"),
        ("漢🌙", "[U+6F22][U+1F319]"),
        ("a\nb\x00", "a b[U+0000]"),
    ],
)  # fmt: skip
def test_latex_escapes(text: str, shown: str) -> None:
    assert escape_latex(text) == shown


def test_latex_is_ascii_and_balanced(report: Report) -> None:
    for text in (render_latex(report), render_first_table(report)):
        assert text.isascii()
        begun = re.findall(r"\\begin\{(\w+)\}", text)
        assert sorted(begun) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    assert render_latex(report).startswith(r"\documentclass")
    assert r"\usepackage{booktabs}" in render_latex(report)
    assert (
        render_latex(report).count(r"\toprule") == render_latex(report).count(r"\bottomrule") >= 3
    )
    assert r"\textless{}script\textgreater{}" in render_latex(report)


def test_every_row_of_a_latex_table_has_its_columns(report: Report) -> None:
    inside = render_first_table(report).split(r"\begin{tabular}{")[-1]
    kinds, rest = inside.split("}", 1)
    rows = [line for line in rest.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 1 + 4 + 1  # heading, base, arms, a published line
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(kinds)}


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(make_finished_study: Run) -> None:
    made = make_finished_study(ODD, response=make_response)
    write_report(made.make_report(), made.folder)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [*command, "report.tex"], cwd=made.folder, capture_output=True, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    alone = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table.tex}"
        r"\end{document}"
    )
    (made.folder / "alone.tex").write_text(alone)
    done = subprocess.run(
        [*command, "alone.tex"], cwd=made.folder, capture_output=True, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
