"""The page as HTML, with windows and rates as they are declared; `static/page.js` fills in the numbers."""

from html import escape
from pathlib import Path
from string import Template

from callfunnel.streams.rates import RATES, Rate
from callfunnel.streams.windows import WINDOWS_AND_ALL, Window

STATIC = Path(__file__).parent / "static"
USUAL_WINDOW = "1h"


def page() -> str:
    """`static/page.html`, filled in."""
    cards = {name: _card(rate) for name, rate in RATES.items()}
    return Template((STATIC / "page.html").read_text("utf-8")).substitute(
        windows="\n      ".join(map(_choice, WINDOWS_AND_ALL.values())),
        response=cards.pop("response"),
        rates="\n        ".join(cards.values()),
    )


def _choice(window: Window) -> str:
    checked = " checked" if window.name == USUAL_WINDOW else ""
    button = f'<input type="radio" name="window" value="{window.name}"{checked}>'
    return f"<label>{button}<span>{escape(window.title)}</span></label>"


def _card(rate: Rate) -> str:
    lines = [
        f'<div class="card" id="{rate.name}">',
        f'  <h3>{escape(rate.title)}</h3><p class="value">–</p>',
        f'  <p class="of">{escape(rate.definition)}</p>',
        *(['  <p class="advice"></p>'] if rate.standard else []),
        "</div>",
    ]
    return "\n        ".join(lines)
