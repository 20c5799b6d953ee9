"""What the tour visits, in order: a file here and a line in SECTIONS for each domain."""

from dataclasses import dataclass
from pathlib import Path

# Title on the console -> module with `run(visit) -> Section`. Imported when its turn comes.
SECTIONS: dict[str, str] = {
    "vision": "vision",
    "time series": "timeseries",
    "graphs": "graph",
    "audio": "audio",
    "speed of the scan": "speed",
}


@dataclass(frozen=True)
class Visit:
    """What a section gets.

    folder: Its own folder for data and runs.
    tiny: Do the least that shows that everything works, for tests; the report says so.
    """

    folder: Path
    tiny: bool = False
