"""The mathematics of editing: torch only, no files, no network (DESIGN section 3)."""
