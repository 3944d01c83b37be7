"""One page of the site: its links, and equations as MathML."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dias_lab.book.page import PLOTLY, linker, math, page


def test_links_of_other_sites_and_pasted_pictures_stay():
    link = linker("notebooks", "docs", {"docs/a b.md": "docs/a b.html"})
    assert link("https://arxiv.org/abs/2507.23755#A") == "https://arxiv.org/abs/2507.23755#A"
    assert link("../docs/a%20b.md#Some-Words?") == "a%20b.html#some-words"
    assert link("../README.md") is None
    cell = new_markdown_cell("![x](attachment:x.png)", attachments={"x.png": {"image/png": "QUJD"}})
    assert "data:image/png;base64,QUJD" in page(new_notebook(cells=[cell]), "x")


@pytest.mark.parametrize("tex", [r"\operatorname*{arg\,max}_n a", r"\begin{align} a &= b \\ c &= d \end{align}", r"\lVert x \rVert < 1"])
def test_equations_become_mathml(tex):
    assert math(tex, "block").startswith("<math ")


@pytest.mark.parametrize("tex", [r"\unknown{x}", "a & b", r"\left( a"])
def test_equations_without_translation_stay_tex(tex):
    assert math(tex, "inline").startswith('<code class="tex">')


def test_many_figures_share_one_script_and_a_clickable_one_is_shown_without_its_kernel():
    figure = {"data": [{"y": [1, 2, 3], "type": "scatter"}], "layout": {}}
    both = {PLOTLY: figure, "application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "Clickable"}
    shown = [new_output("display_data", data=data) for data in ({PLOTLY: figure}, both, {PLOTLY: figure})]
    text = page(new_notebook(cells=[new_code_cell("x", outputs=[one]) for one in shown]), "x")
    assert text.count("plotly.min.js") == 1 and text.count("Plotly.newPlot") == 3
    assert len(text) < 500_000 and "widget-view" not in text
