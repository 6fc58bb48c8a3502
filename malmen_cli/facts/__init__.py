"""Facts: one value per fact, every fact-file format read into it, checked, merged and given a digest.

`read_fact_set` is the way in from a file, `read_prompts` that of prompts alone, `Fact.from_json` the way back from the
ledger, `printable` the way to a display; `FORMATS` describes every format in a line.
"""

from malmen_cli.facts.fact import Fact, Unrelated
from malmen_cli.facts.fact_set import FactSet
from malmen_cli.facts.fields import MAX_TEXT_BYTES, printable
from malmen_cli.facts.formats import FORMATS, FactFormat
from malmen_cli.facts.prompts import Prompts, read_prompts
from malmen_cli.facts.reading import OnConflict, read_fact_set

__all__ = [
    "FORMATS",
    "MAX_TEXT_BYTES",
    "Fact",
    "FactFormat",
    "FactSet",
    "OnConflict",
    "Prompts",
    "Unrelated",
    "printable",
    "read_fact_set",
    "read_prompts",
]
