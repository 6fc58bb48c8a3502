"""The short names by which people call models, and the repositories of the hub that they mean."""

from __future__ import annotations


def _family(form: str, repo: str, *sizes: str) -> dict[str, tuple[str, ...]]:
    """Models of one make that differ in their size: how they are called, and where they are, with {} for the size."""
    return {form.format(size).lower(): (repo.format(size),) for size in sizes}


# Short name -> repository ids, in the order they are looked for; the first is the one to download.
KNOWN_NAMES: dict[str, tuple[str, ...]] = {
    "gpt-j": ("EleutherAI/gpt-j-6b", "EleutherAI/gpt-j-6B"),
    "gpt2": ("openai-community/gpt2", "gpt2"),
    "gpt2-medium": ("openai-community/gpt2-medium", "gpt2-medium"),
    "gpt2-large": ("openai-community/gpt2-large", "gpt2-large"),
    "gpt2-xl": ("openai-community/gpt2-xl", "gpt2-xl"),
    "distilgpt2": ("distilbert/distilgpt2", "distilgpt2"),
    "gpt-neox-20b": ("EleutherAI/gpt-neox-20b",),
    **_family("pythia-{}", "EleutherAI/pythia-{}", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"),
    **_family("opt-{}", "facebook/opt-{}", "125m", "350m", "1.3b", "2.7b", "6.7b", "13b"),
    "llama-2-7b": ("meta-llama/Llama-2-7b-hf",),
    "llama-2-13b": ("meta-llama/Llama-2-13b-hf",),
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B",),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B",),
    "llama-3.2-3b": ("meta-llama/Llama-3.2-3B",),
    "tinyllama": ("TinyLlama/TinyLlama_v1.1", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    **_family("smollm2-{}", "HuggingFaceTB/SmolLM2-{}", "135M", "360M", "1.7B"),
    "mistral-7b": ("mistralai/Mistral-7B-v0.1",),
    "mistral-7b-v0.1": ("mistralai/Mistral-7B-v0.1",),
    "mistral-7b-v0.3": ("mistralai/Mistral-7B-v0.3",),
    **_family("qwen2-{}", "Qwen/Qwen2-{}", "0.5B", "1.5B", "7B"),
    **_family("qwen2.5-{}", "Qwen/Qwen2.5-{}", "0.5B", "1.5B", "3B", "7B", "14B"),
    **_family("qwen3-{}", "Qwen/Qwen3-{}", "0.6B", "1.7B", "4B", "8B", "14B"),
    **_family("gemma-2-{}", "google/gemma-2-{}", "2b", "9b", "27b"),
    "gemma-3-270m": ("google/gemma-3-270m",),
    **_family("gemma-3-{}", "google/gemma-3-{}-pt", "1b", "4b", "12b"),
    "phi-2": ("microsoft/phi-2",),
    "phi-3-mini": ("microsoft/Phi-3-mini-4k-instruct",),
    "t5-small": ("google-t5/t5-small", "t5-small"),
    "t5-base": ("google-t5/t5-base", "t5-base"),
    "t5-large": ("google-t5/t5-large", "t5-large"),
    "t5-3b": ("google-t5/t5-3b", "t5-3b"),
    "t5-xl": ("google/t5-xl-lm-adapt",),
    **_family("flan-t5-{}", "google/flan-t5-{}", "small", "base", "large", "xl", "xxl"),
    **_family("bart-{}", "facebook/bart-{}", "base", "large"),
}
