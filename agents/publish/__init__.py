"""From an application or a file to the source topic: each event acknowledged, or told back with why not."""
