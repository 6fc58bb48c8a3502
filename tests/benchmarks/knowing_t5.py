"""A small T5 that knows CounterFact's true answers, trained from nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from learning import learn, padded, save
from torch import Tensor

PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"
VOCABULARY, WIDTH, INNER, LAYERS, HEADS = 4096, 128, 1024, 3, 4
BATCH, LEARNING_RATE = 96, 0.02


def make_t5(shared: Path, folder: Path, *, facts: int, scored: int, epochs: int, seed: int) -> dict[str, Any]:
    """Write `model/` and the fact files `train.json` (an editor's) and `dev.json` (to score with) into a folder.

    The model learns prompts and unrelated prompts of both files with their true answers, and half of the first
    file's rephrases; the other rephrases it never sees.

    Args:
        facts, scored: facts of CounterFact's train.json and dev.json.

    Returns:
        Shares of prompts answered in full, greedily, seconds, and sizes.
    """
    rows, asked = (
        json.loads((shared / "data" / "counterfact" / name).read_text("utf-8"))[:count]
        for name, count in (("train.json", facts), ("dev.json", scored))
    )
    edits = [(row["prompt"], row["ground_truth"]) for row in [*rows, *asked]]
    unrelated = [(row["locality_prompt"], row["locality_ground_truth"]) for row in [*rows, *asked]]
    rephrases = [(row["rephrase_prompt"], row["ground_truth"]) for row in [*rows, *asked]]
    seen, unseen = rephrases[: len(rows) // 2], rephrases[len(rows) // 2 :]
    known = list(dict.fromkeys([*edits, *unrelated, *seen]))
    tokenizer = _tokenizer(known, [row["target_new"] for row in [*rows, *asked]])
    model = _model(tokenizer, seed)
    prompts: list[list[int]] = tokenizer([prompt for prompt, _ in known])["input_ids"]
    answers: list[list[int]] = tokenizer([answer for _, answer in known])["input_ids"]

    def loss(chosen: list[int]) -> Tensor:
        inputs = padded([prompts[i] for i in chosen], tokenizer.pad_token_id)
        labels = padded([answers[i] for i in chosen], -100)
        mask = (inputs != tokenizer.pad_token_id).long()
        out: Tensor = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        return out

    seconds = learn(
        model,
        [len(ids) for ids in prompts],
        loss,
        epochs=epochs,
        batch=BATCH,
        learning_rate=LEARNING_RATE,
        seed=seed,
    )
    save(model, tokenizer, folder / "model")
    (folder / "train.json").write_text(json.dumps(rows), "utf-8")
    (folder / "dev.json").write_text(json.dumps(asked), "utf-8")
    sets = {"prompts": edits, "unrelated": unrelated, "rephrases_seen": seen, "rephrases_unseen": unseen}
    targets = [tokenizer(row["target_new"])["input_ids"] for row in [*rows, *asked]]
    return {
        **{name: _share_right(model, tokenizer, _sample(pairs, seed)) for name, pairs in sets.items()},
        "texts": len(known),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_per_target": sum(len(ids) - 1 for ids in targets) / len(targets),
        "seconds": round(seconds),
    }


def _tokenizer(known: Sequence[tuple[str, str]], targets: Sequence[str]) -> Any:
    """T5's: a unigram model over words with their space, the end token last. Each answer of one word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=[PADDING, END, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    answers = dict.fromkeys([*(answer for _, answer in known), *targets])
    unigram.train_from_iterator([*(prompt for prompt, _ in known), *answers], trainer)
    scores: dict[str, float] = dict(json.loads(unigram.to_str())["model"]["vocab"])
    frequent = max(score for piece, score in scores.items() if piece not in (PADDING, END, UNKNOWN))
    for answer in answers:
        if len(answer.split()) == 1:
            scores[f"▁{answer}"] = frequent  # likelier than any way to put it together from pieces
    vocabulary = list(scores.items())
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def _model(tokenizer: Any, seed: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=INNER,
        num_layers=LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def _sample(pairs: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    return random.Random(seed).sample(pairs, min(1000, len(pairs)))


@torch.no_grad()
def _share_right(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    right = 0
    for start in range(0, len(pairs), 250):
        some = pairs[start : start + 250]
        inputs = tokenizer([prompt for prompt, _ in some], padding=True, return_tensors="pt")
        out = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=12, do_sample=False
        )
        said = tokenizer.batch_decode(out, skip_special_tokens=True)
        right += sum(text.strip() == answer for text, (_, answer) in zip(said, some, strict=True))
    return right / len(pairs)
