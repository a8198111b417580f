"""The hours that tests of rules suppose, whatever those of the floor are."""

import json
import re

import yaml


def with_usual_hours(calling_hours: str) -> str:
    """Monday to Friday, 09:00 to 20:00 UTC, whatever the floor's own hours are: those of the rules' tests."""
    groups = yaml.safe_load(calling_hours)
    offset, opened = groups["groups"][0]["rules"]
    assert (offset["record"], opened["record"]) == (
        "callfunnel:utc_offset_seconds",
        "callfunnel:open_seconds",
    )
    offset["expr"] = "vector(0)"
    hours = re.sub(r"- \S+ \* 3600 >= 0 < \S+ \* 3600", "- 9 * 3600 >= 0 < 11 * 3600", opened["expr"])
    opened["expr"] = re.sub(r">= \d <= \d", ">= 1 <= 5", hours)
    return json.dumps(groups)  # JSON is YAML
