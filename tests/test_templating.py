"""Templates: values of a data set cannot become markup."""

import pytest
from jinja2 import UndefinedError

from walloc_data.templating import escape_markdown, render_html


def test_values_are_escaped_in_text_and_in_attributes_and_markup_is_kept() -> None:
    hostile = "\"><script>alert('1')</script>"
    table = render_html("bar_table.html.j2", rows=[(hostile, 1.0, "1")], top=1.0, caption=hostile, head=("a", "b"))
    assert "<script" not in table
    assert table.count("&#34;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;") == 2
    shape = {"tag": "text", "attributes": {"class": hostile}, "text": table}
    chart = render_html(
        "chart.html.j2", n=1, shapes=[shape], title=hostile, description="", facts="", width=1, height=1
    )
    assert "<script" not in chart
    assert table in chart  # a rendered part is markup already


def test_a_value_that_was_not_passed_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'caption' is undefined"):
        render_html("bar_table.html.j2", rows=[], top=1.0, head=("a", "b"))


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("cat", "cat"),
        ("a *b* _c_", r"a \*b\* \_c\_"),
        ("# head\n- item | cell", r"\# head \- item \| cell"),
        ("[x](javascript:1)", r"\[x\]\(javascript:1\)"),
        ("<img src=x> & it's", "&lt;img src=x&gt; &amp; it's"),
    ],
)
def test_text_has_no_meaning_in_markdown(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped
