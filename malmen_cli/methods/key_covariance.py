"""The mean second moment of keys over running text: what MEMIT holds against changing what other texts say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from malmen_cli.editing.capture import capturing
from malmen_cli.editing.linear_algebra import add_gram, in_double, mirror
from malmen_cli.errors import UsageError
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.methods.set_method import Progress, silent

PASSAGE = 512
"""Tokens of a passage at most."""


def key_covariance(
    model: LanguageModel, text: str, *, tokens: int, batch_tokens: int = 2048, progress: Progress = silent
) -> tuple[list[Tensor], int]:
    """C0 = (1 / m) sum_i u_i u_i^T per edited layer (d_in, d_in), float64, over m tokens of the text, and m.

    MEMIT (arXiv 2210.07229, equation 15). The model stands at its base weights. Layers of the last block, whose inner
    width the model computes at answers alone, have no keys here.

    Args:
        tokens: of the text's beginning, at most. batch_tokens: padded tokens that the model runs at once.

    Raises:
        UsageError: the text has fewer tokens than keys have dimensions, so that C0 would say nothing of some of them.
    """
    read = list(passages(model.tokenizing, text, tokens))
    m = sum(map(len, read))
    wanted = max(layer.shape.d_in for layer in model.layers)
    if m < wanted:
        how = "Raise covariance_tokens" if m == tokens else "Give a longer text"
        raise UsageError(
            f"C0 would be of {m:,} tokens of the running text, and the keys of the edited layers have {wanted:,} "
            "dimensions",
            remedy=f"{how}: {10 * wanted:,} tokens or more.",
        )
    exact = in_double(torch.zeros(0, device=model.device)).device
    sums = [torch.zeros(x.d_in, x.d_in, dtype=torch.float64, device=exact) for x in model.shapes]
    modules = [layer.module for layer in model.layers]
    done = 0
    for batch in model.batches([Tokens(ids, (0,)) for ids in read], batch_tokens):
        with capturing(modules, gradients=False) as capture:
            model.head.references(batch)
        for total, keys in zip(sums, capture.keys, strict=True):
            add_gram(total, in_double(batch.packed(keys.view(*batch.input_ids.shape, -1))).to(total.device))
        done += sum(batch.lengths)
        progress("covariance of keys", done, m)
    for total in sums:
        mirror(total)
    return [total.div_(m).cpu() for total in sums], m


def passages(tokenizing: Tokenizing, text: str, tokens: int) -> Iterator[tuple[int, ...]]:
    """Token ids of the text line by line, as many as `tokens`, in pieces that the model has positions for."""
    longest = min(tokenizing.limit or PASSAGE, PASSAGE)
    for line in text.splitlines():
        ids: Sequence[int] = tokenizing.encode(line)["input_ids"] if line.strip() else ()
        tokenizing.require_known(ids, line)
        for start in range(0, len(ids), longest):
            piece = tuple(ids[start : start + longest])[:tokens]
            if not piece:
                return
            tokens -= len(piece)
            yield piece
