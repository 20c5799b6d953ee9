"""Goes through the sections one after another and writes the report after each, so that nothing done is ever lost."""

import datetime
import importlib
import sys
import time
import traceback
from pathlib import Path

import torch

from apps.bench.scan import describe_machine
from ssmcore.engine.errors import Interrupted

from .report import Report
from .sections import Visit

TITLE = "State-space models on this machine"
LEAD = (
    "What the suite did here just now, without a network: models trained on real data, and the scan that they rest on."
)


def tour(output: Path, sections: dict[str, str], threads: int | None = None, tiny: bool = False) -> int:
    """Run sections and write `output`/index.html.

    Args:
        output: Folder of the report; each section's data and runs lie in a folder of its name below it.
        sections: Title on the console -> module in apps.tour.sections.
        threads: CPU threads; None leaves torch's choice.
        tiny: See Visit.
    Returns:
        0, 1 when a section failed, 130 when it was interrupted.
    """
    if threads:
        torch.set_num_threads(threads)
    report, page, status = Report(TITLE, LEAD, _facts(tiny)), output / "index.html", 0
    report.missing = dict.fromkeys(sections, "interrupted before its turn")
    started = time.monotonic()
    for number, (title, name) in enumerate(sections.items(), 1):
        print(f"\n[{number}/{len(sections)}] {title}", flush=True)
        begun = time.monotonic()
        try:
            section = importlib.import_module(f"{__package__}.sections.{name}").run(Visit(output / name, tiny))
        except (KeyboardInterrupt, Interrupted):
            status = 130
        except Exception as error:  # a section that fails must not take the others with it
            traceback.print_exc()
            report.missing[title], status = f"failed: {type(error).__name__}: {error}", 1
        else:
            report.sections.append(section)
            del report.missing[title]
            print(f"    {section.summary} ({time.monotonic() - begun:.0f} s)", flush=True)
        report.facts["took"] = f"{time.monotonic() - started:.0f} s"
        if status == 130:
            report.missing[title] = "interrupted"
        report.write(page)
        if status == 130:
            print("interrupted: the report has what was done", file=sys.stderr)
            break
    print(f"\nReport: {page.resolve()}\nOpen it in a browser; it is one file and needs no network.")
    return status


def _facts(tiny: bool) -> dict[str, str]:
    machine = describe_machine()
    facts = {
        "machine": f"{machine['cpu']}, {machine['cores']} cores",
        "threads": str(torch.get_num_threads()),
        "software": f"Python {machine['python']}, torch {machine['versions']['torch']}, {machine['system']}",
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    if tiny:
        facts["setting"] = "tiny: shows that everything works, the numbers mean nothing"
    return facts
