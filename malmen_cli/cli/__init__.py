"""The command line: one module per verb, thin; the only place that catches errors and sets exit statuses."""
