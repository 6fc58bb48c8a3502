"""Editing methods beside MALMEN, in one frame: what each is called (`registry`), its settings (`settings`), and the
mathematics of each in a file of its own."""
