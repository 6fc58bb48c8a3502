"""malmen: edit thousands of facts in a local language model at once; show, verify and exactly undo every edit."""

__version__ = "0.1.0"
