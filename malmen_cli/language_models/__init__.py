"""Causal language models from local folders: the only importer of transformers."""
