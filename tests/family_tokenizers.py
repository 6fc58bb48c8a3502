"""Tokenizers of every kind that the families use: trained on a few sentences, in the class that the family has.

What sets them apart is what malmen must not stumble over: what they put first and last, whether a space belongs to the
word before it or after it, whether there is a pad token, on which side they pad, and what they do with an unknown
letter.
"""

from __future__ import annotations

import json
import string
from functools import cache
from typing import Any

from tiny_models import CITIES, POSITIONS, SENTENCES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 400
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


@cache
def _byte_level(*special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    return _trained(tokenizer, trainer)


@cache
def _metaspace(*special: str) -> Tokenizer:
    """As sentencepiece's BPE with byte fallback: letters beyond the sentences' own become bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*special, *_BYTES], initial_alphabet=["▁"], show_progress=False
    )
    return _trained(tokenizer, trainer)


def _pieces(tokenizer: Tokenizer) -> dict[str, Any]:
    """Vocabulary and merges, as the classes of transformers take them."""
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _made(name: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, name)(model_max_length=POSITIONS, **settings)


def gpt2() -> Any:
    """Byte-level, nothing first, one special token, no pad token. GPT-2, GPT-J and Phi."""
    return _made("GPT2Tokenizer", **_pieces(_byte_level("<|endoftext|>")))


def gpt_neox() -> Any:
    """The same with a pad token of its own."""
    return _made("GPTNeoXTokenizer", **_pieces(_byte_level("<|endoftext|>", "<|padding|>")))


def opt() -> Any:
    """GPT-2's with `</s>` first, which ends a text, too."""
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return _made("GPT2Tokenizer", **_pieces(_byte_level("<s>", "<pad>", "</s>")), **special, add_bos_token=True)


def qwen() -> Any:
    """Byte-level over a pattern and a normal form of its own, no first token, the pad token ends texts."""
    return _made("Qwen2Tokenizer", **_pieces(_byte_level("<|endoftext|>")))


def llama2() -> Any:
    """Metaspace and byte fallback with `<s>` first, padded on the left, no pad token. Llama 2 and Mistral."""
    return _made("LlamaTokenizer", **_pieces(_metaspace("<unk>", "<s>", "</s>")), add_bos_token=True)


def phi3() -> Any:
    """Llama 2's with nothing first, and one more token, which ends texts and pads them."""
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return _made("LlamaTokenizer", **_pieces(_metaspace("<unk>", "<s>", "</s>", "<|endoftext|>")), **ends)


def gemma() -> Any:
    """Spaces become letters before anything is cut; `<bos>` first, padded on the left."""
    tokenizer = _metaspace("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    return _made("GemmaTokenizer", **_pieces(tokenizer), add_bos_token=True)


def llama3() -> Any:
    """Byte-level with its first token put there by a template, whatever the class is told. Llama 3."""
    special = ("<|begin_of_text|>", "<|end_of_text|>")
    tokenizer = Tokenizer.from_str(_byte_level(*special).to_str())
    template = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return _made("PreTrainedTokenizerFast", tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])


@cache
def t5() -> Any:
    """Unigram over words, `</s>` last; a letter that it does not know is the unknown token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY // 2,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    # Scores differ in their last digits, and with them the order, from one training to the next.
    pieces = json.loads(_trained(tokenizer, trainer).to_str())["model"]["vocab"]
    special, learnt = pieces[:3], sorted((-round(score, 3), piece) for piece, score in pieces[3:])
    letters = {*string.ascii_letters, *string.punctuation, *"".join(CITIES)} - {" "}
    rare = sorted(letters - {piece for _, piece in learnt})
    vocabulary = [*map(tuple, special), *((piece, -cost) for cost, piece in learnt), *((x, -20.0) for x in rare)]
    return _made("T5Tokenizer", vocab=vocabulary, extra_ids=4)


def roberta() -> Any:
    """Byte-level between `<s>` and `</s>`. RoBERTa and BART."""
    return _made("RobertaTokenizer", **_pieces(_byte_level("<s>", "<pad>", "</s>", "<unk>", "<mask>")))


@cache
def bert() -> Any:
    """WordPiece, in lower case, between `[CLS]` and `[SEP]`: whole words of the sentences, others letter by letter."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Not by its trainer, which breaks ties in another way each time.
    plain = [normalizers.BertNormalizer().normalize_str(sentence) for sentence in SENTENCES]
    words = {word for text in plain for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)}
    letters = {letter for word in words for letter in word}
    pieces = sorted(letters | {f"##{letter}" for letter in letters} | words)
    return _made("BertTokenizer", vocab={token: number for number, token in enumerate(special + pieces)})
