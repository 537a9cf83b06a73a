"""The report in a real browser: nothing runs, nothing overflows, and axe finds no barrier."""

import os
from pathlib import Path
from typing import Any

import pytest

from walloc_data.report import report


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core: $WALLOC_DATA_AXE, or node_modules beside or in the repository."""
    root = Path(__file__).resolve().parents[2]
    places = [os.environ.get("WALLOC_DATA_AXE", ""), root / "node_modules", root.parent / "node_modules"]
    for place in filter(None, places):
        for path in (Path(place), Path(place) / "axe-core" / "axe.min.js"):
            if path.is_file():
                return path.read_text()
    pytest.skip("needs axe-core: `npm install axe-core`, and its axe.min.js in WALLOC_DATA_AXE")


@pytest.fixture(scope="module")
def page_file(imagenette_latents: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(imagenette_latents.out, tmp_path_factory.mktemp("browser") / "report.html")


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_the_page_shows_everything_and_runs_nothing(
    browser: Any, axe: str, page_file: Path, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
    )
    page.goto(page_file.as_uri())
    assert said == []
    assert page.title() == "nette: latents"  # the hostile class name would have changed it
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 251, 250)", "dark": "rgb(19, 21, 26)"}[scheme]
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    page.evaluate(axe + "; 0")
    result = page.evaluate("axe.run()")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in result["violations"]] == []
    assert len(result["passes"]) > 10
    assert said == []
    context.close()
