"""A small BERT that knows whether FEVER's claims hold, trained from nothing.

It has had no pretraining, and labels alone leave nothing at [CLS] of a claim but its label: the keys of all claims lie
along one or two directions, and no claim can be edited without the others. A second loss therefore keeps the keys of
different claims apart, which pretraining does for a real BERT.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from learning import learn, padded, save
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, POSITIONS = 6000, 192, 768, 4, 4, 96
BATCH, LEARNING_RATE = 64, 0.025
STEPS = 24  # per pass at least, while batches stay above 16: of few claims
APART, TEMPERATURE = 1.0, 0.1  # coefficient and temperature of the loss that keeps claims apart
TRUE, FALSE = "SUPPORTS", "REFUTES"  # one logit; above zero it says TRUE
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_bert(shared: Path, folder: Path, *, facts: int, scored: int, epochs: int, seed: int) -> dict[str, Any]:
    """Write `model/` and the fact files `train.json` (an editor's) and `dev.json` (to score with) into a folder.

    The model learns every claim's label. A fact is a claim with the other label; its unrelated prompt is a claim that
    is no fact of either file, with its own label. There are no paraphrases.

    Args:
        facts, scored: facts per file; as many claims again are unrelated prompts.

    Returns:
        Share of claims said rightly, seconds, and sizes.
    """
    rows = json.loads((shared / "data" / "fever" / "claims_dev.json").read_text("utf-8"))
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["prompt"], set()).add(row["label"])
    known = [(claim, *said) for claim, said in labels.items() if len(said) == 1]  # some stand there twice
    claims = random.Random(seed).sample(known, 2 * (facts + scored))
    tokenizer = _tokenizer([claim for claim, _ in claims])
    model = _model(tokenizer, seed)
    texts: list[list[int]] = tokenizer([claim for claim, _ in claims])["input_ids"]
    holds = torch.tensor([float(label == TRUE) for _, label in claims])

    keys: list[Tensor] = []
    handles = [
        layer.output.dense.register_forward_pre_hook(lambda _, args: keys.append(args[0][:, 0]))
        for layer in model.bert.encoder.layer
    ]

    def logits(chosen: Sequence[int]) -> Tensor:
        inputs = padded([texts[i] for i in chosen], tokenizer.pad_token_id)
        out: Tensor = model(input_ids=inputs, attention_mask=(inputs != tokenizer.pad_token_id).long()).logits[:, 0]
        return out

    def loss(chosen: list[int]) -> Tensor:
        keys.clear()
        said = binary_cross_entropy_with_logits(logits(chosen), holds[chosen])
        return said + APART * torch.stack([_likeness(u) for u in keys]).mean()

    seconds = learn(
        model,
        [len(ids) for ids in texts],
        loss,
        epochs=epochs,
        batch=min(BATCH, max(16, len(claims) // STEPS)),
        learning_rate=LEARNING_RATE,
        seed=seed,
    )
    for handle in handles:
        handle.remove()
    save(model, tokenizer, folder / "model")
    (folder / "train.json").write_text(json.dumps(_facts(claims[: 2 * facts])), "utf-8")
    (folder / "dev.json").write_text(json.dumps(_facts(claims[2 * facts :])), "utf-8")
    with torch.no_grad():
        said = torch.cat([logits(range(i, min(i + 256, len(texts)))) for i in range(0, len(texts), 256)])
    return {
        "claims": ((said > 0) == (holds > 0.5)).double().mean().item(),
        "texts": len(claims),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds),
    }


def _likeness(keys: Tensor) -> Tensor:
    """How alike the keys of different claims are: the part of InfoNCE (arXiv 1807.03748) that drives pairs apart."""
    directions = normalize(keys, dim=1)
    similarity = (directions @ directions.T / TEMPERATURE).masked_fill(torch.eye(len(keys), dtype=torch.bool), -1e4)
    return similarity.logsumexp(1).mean()


def _facts(claims: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Half of the claims with the other label, each beside one of the other half."""
    half = len(claims) // 2
    return [
        {"prompt": claim, "alt": FALSE if label == TRUE else TRUE, "unrel_prompt": other, "unrel_ans": its_label}
        for (claim, label), (other, its_label) in zip(claims[:half], claims[half:], strict=True)
    ]


def _tokenizer(claims: Sequence[str]) -> Any:
    """WordPiece of the commonest words and all letters; the library's own trainer gives other pieces every time."""
    from tokenizers import normalizers, pre_tokenizers
    from transformers import BertTokenizer

    plain, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for x in claims for word, _ in split.pre_tokenize_str(plain.normalize_str(x)))
    letters = sorted(set("".join(words)))
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    pieces += sorted(words.keys() - set(pieces), key=lambda word: (-words[word], word))[: VOCABULARY - len(pieces)]
    return BertTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}, model_max_length=POSITIONS)


def _model(tokenizer: Any, seed: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForSequenceClassification(config)
