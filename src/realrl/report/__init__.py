"""A run's report: one self-contained HTML page, and the same stage table for the terminal and for Markdown.

Everything comes from files of the run directory (`summary.json`, `metrics.jsonl`, and where there are any `ope.json`,
`failures.json`, `config.yaml`, `meta.json`); a part whose file is missing is left out with a line that says so.
Success rates are fractions in the files and per cent on the page.
"""

from realrl.report.cycle import cycled
from realrl.report.dreaming import earned
from realrl.report.foresight import foresight_table, hindsight_lines
from realrl.report.page import write_report
from realrl.report.tables import improved, markdown_table, pressed, stage_table

__all__ = ["cycled", "earned", "foresight_table", "hindsight_lines", "improved", "markdown_table", "pressed", "stage_table", "write_report"]
