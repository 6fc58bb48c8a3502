"""Meta-training of an editor: rows, features of the frozen model, one step, the resumable loop."""
