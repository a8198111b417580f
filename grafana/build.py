"""Write the dashboards: `python -m grafana.build`.

The law: the same code gives the same bytes, and what is checked in is what the code gives.
"""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import agents, campaign, engine, overview, speed

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = (overview, campaign, agents, speed, engine)


def documents() -> dict[str, str]:
    """File name and content of every dashboard."""
    return {
        f"{board.UID}.json": json.dumps(
            board.build(), cls=JSONEncoder, indent=2, ensure_ascii=False, sort_keys=True
        )
        + "\n"
        for board in BOARDS
    }


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
