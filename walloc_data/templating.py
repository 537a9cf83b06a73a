"""Rendering of the Jinja2 templates in `templates/`: HTML with autoescape, and Markdown."""

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

__all__ = ["escape_markdown", "render", "render_html"]

# Characters that format text, begin a link, or end a table cell.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+.!|~-])")


def escape_markdown(text: str) -> str:
    r"""Return text as one line, escaped for Markdown and for HTML inside Markdown.

    Example:
        >>> from walloc_data.templating import escape_markdown
        >>> print(escape_markdown("<b>a_b\n| c"))
        &lt;b&gt;a\_b \| c
    """
    return _MARKDOWN.sub(r"\\\1", str(escape(" ".join(text.split()))).replace("&#39;", "'").replace("&#34;", '"'))


def render_html(template: str, /, **values: object) -> Markup:
    """Render a template whose name ends in `.html.j2`: every value that is not itself `Markup` is escaped.

    Raises:
        jinja2.UndefinedError: the template uses a value that was not passed.

    Example:
        >>> from walloc_data.templating import render_html
        >>> table = render_html("bar_table.html.j2", rows=[("<b>", 1, "1")], top=1, caption="C", head=("name", "n"))
        >>> "&lt;b&gt;" in table
        True
    """
    return Markup(render(template, **values))  # noqa: S704  (a template with autoescape)


def render(template: str, /, **values: object) -> str:
    """Render a template. Outside `.html.j2`, values are inserted as they are unless the template filters them.

    Example:
        >>> from walloc_data.templating import render
        >>> render("report.css").startswith("/* System fonts")
        True
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("walloc_data"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default_for_string=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = escape_markdown
    return environment
