"""Write the dashboards: `python -m grafana.build`.

The law: the same code gives the same bytes, and what is checked in is what the code gives.
"""

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.boards import agents, campaign, engine, overview, plan, speed

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = (overview, campaign, agents, speed, plan, engine)


def documents() -> dict[str, str]:
    """File name and content of every dashboard."""
    return {f"{board.UID}.json": _text(plain(board.build())) for board in BOARDS}


def plain(board: Dashboard) -> dict[str, Any]:
    """A dashboard as the JSON document that Grafana reads."""
    document: dict[str, Any] = json.loads(json.dumps(board, cls=JSONEncoder))
    # The SDK always writes a place for these, a menu that has to be opened first.
    for one in (*document["links"], *document["annotations"]["list"]):
        one.pop("placement", None)
    return document


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> int:
    """Write what changed, remove what is no dashboard any more, and name both."""
    FOLDER.mkdir(exist_ok=True)
    wanted = documents()
    for path in FOLDER.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
            print(f"removed {path.name}")
    for name, text in wanted.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
