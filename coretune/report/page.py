"""Facts -> one HTML file that needs nothing else: style, scripts, plotly.js and data are in it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent / "template"
SCRIPTS = ("plots.js", "table.js", "page.js")


def render(facts: dict[str, Any]) -> str:
    """The page. Whatever a row's text holds is escaped, in HTML by jinja2 and in the data by `tojson`."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # Only our own files and plotly's are trusted as they are.
    own = {name: Markup((HERE / name).read_text(encoding="utf-8")) for name in ("style.css", *SCRIPTS)}
    return environment.get_template("page.html").render(
        facts=facts,
        style=own["style.css"],
        scripts=[own[name] for name in SCRIPTS],
        plotly=Markup(_plotly()),
    )


@cache
def _plotly() -> str:
    """plotly.js as its Python package ships it; `</script` cannot end our element."""
    source = files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script")
