"""The formats a fact may come in: the table of them, and one small reader for each published one.

`fact_from_row` reads one record, `FORMATS` describes every format in a line, `with_any_targets` is for those who want
the prompts alone.
"""

from malmen_cli.facts.formats.table import FORMATS, FactFormat, fact_from_row
from malmen_cli.facts.formats.targets import with_any_targets

__all__ = ["FORMATS", "FactFormat", "fact_from_row", "with_any_targets"]
