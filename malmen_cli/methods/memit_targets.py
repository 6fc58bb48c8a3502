"""MEMIT's targets: what the last edited block should put out where a subject ends, found by gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from malmen_cli.language_models.heads import wide
from malmen_cli.language_models.texts import Tokens
from malmen_cli.methods.residual_stream import ResidualStream
from malmen_cli.methods.set_method import Progress, silent
from malmen_cli.methods.settings import MemitSettings

CHUNK = 64
"""Facts that are worked on at once: their hidden states are held in memory."""


@dataclass(frozen=True)
class Lookup:
    """One fact as MEMIT reads it.

    Attributes:
        texts: prompt and target, first as they are, then behind each context. places: of each the token that is edited.
        essence: "SUBJECT is a", whose continuation is to stay, and the place of its edited token; None without subject.
    """

    texts: tuple[Tokens, ...]
    places: tuple[int, ...]
    essence: tuple[Tokens, int] | None

    def heads(self) -> list[Tokens]:
        """Every text up to its edited token."""
        cut = zip(self.texts, self.places, strict=True)
        return [Tokens(text.input_ids[: place + 1], (0,)) for text, place in cut]


def target_outputs(
    stream: ResidualStream, lookups: Sequence[Lookup], settings: MemitSettings, *, progress: Progress = silent
) -> Tensor:
    """z = z0 + delta per fact (n, d), float32 (arXiv 2210.07229, equation 16).

    delta is added to the stream at the edited token of every text of the fact. Adam minimises the mean over its texts
    of the target's cross-entropy, plus the KL divergence of what follows "SUBJECT is a" from what did before, plus a
    penalty of |delta| / |z0|^2; after each step |delta| is cut to a share of |z0|. A fact whose loss is small is done.
    """
    found = []
    for start in range(0, len(lookups), CHUNK):
        chunk = lookups[start : start + CHUNK]
        found.append(_of_chunk(stream, chunk, settings))
        progress("targets", start + len(chunk), len(lookups))
    return torch.cat(found)


@torch.enable_grad()
def _of_chunk(stream: ResidualStream, lookups: Sequence[Lookup], settings: MemitSettings) -> Tensor:
    model = stream.model
    texts = [*chain.from_iterable(lookup.texts for lookup in lookups), *(x.essence[0] for x in lookups if x.essence)]
    places = [*chain.from_iterable(x.places for x in lookups), *(x.essence[1] for x in lookups if x.essence)]
    owners = [fact for fact, lookup in enumerate(lookups) for _ in lookup.texts]
    contexts = len(owners)  # the texts after them are essences
    owners += [fact for fact, lookup in enumerate(lookups) if lookup.essence]
    shares = [1 / len(lookups[fact].texts) for fact in owners]
    states = stream.states(texts, settings.batch_tokens)
    firsts = [owners.index(fact) for fact in range(len(lookups))]
    start = wide(torch.stack([states[i][places[i]] for i in firsts]))
    norms = start.norm(dim=1)
    # Adam takes no notice of its parameters' unit: each fact's is the root mean square of what it starts from.
    unit = norms[:, None] / start.shape[1] ** 0.5 if settings.target_learning_rate is None else torch.ones_like(start)
    scaled = torch.zeros_like(start, requires_grad=True)
    rate = settings.target_learning_rate or settings.target_rate
    optimizer = torch.optim.Adam([scaled], lr=rate, foreach=False, fused=False)
    essences: dict[int, Tensor] = {}
    open_facts = torch.ones(len(lookups), dtype=torch.bool, device=start.device)
    for _ in range(settings.target_steps):
        optimizer.zero_grad()
        losses = torch.zeros_like(norms)
        chosen = [i for i, fact in enumerate(owners) if bool(open_facts[fact])]
        for batch in model.batches([texts[i] for i in chosen], settings.batch_tokens):
            of = [chosen[row] for row in batch.rows]
            rows = torch.arange(len(of), device=start.device)
            at = torch.tensor([places[i] for i in of], device=start.device)
            read = batch.padded(torch.cat([states[i] for i in of]))
            delta = (scaled * unit)[[owners[i] for i in of]]
            moved = read.index_put((rows, at), delta.to(read.dtype), accumulate=True)
            logits = wide(stream.logits(batch, moved))
            owner = torch.tensor([owners[i] for i in of], device=start.device)[batch.text]
            share = torch.tensor([shares[i] for i in of], device=start.device, dtype=logits.dtype)[batch.text]
            said = torch.tensor([i < contexts for i in of], device=start.device)[batch.text]
            nll = nn.functional.cross_entropy(logits, batch.labels, reduction="none") / batch.count * share
            kl = torch.zeros_like(nll)
            if settings.kl_factor and not bool(said.all()):
                now = logits[~said].log_softmax(1)
                numbers = [of[text] for text in batch.text[~said].tolist()]
                for number, row in zip(numbers, now.detach(), strict=True):
                    essences.setdefault(number, row)  # in the first step delta is 0
                was = torch.stack([essences[number] for number in numbers])
                kl = kl.masked_scatter(~said, settings.kl_factor * (now.exp() * (now - was)).sum(1))
            loss = torch.where(said, nll, kl)
            (model.loss_scale * loss.sum()).backward()
            losses = losses.index_add(0, owner, loss.detach().to(losses.dtype))
        assert scaled.grad is not None
        scaled.grad /= model.loss_scale
        penalty = settings.weight_decay * (scaled * unit).norm(dim=1) / norms.square()
        penalty.sum().backward()
        open_facts &= losses + penalty.detach() >= settings.target_loss
        if not bool(open_facts.any()):
            break
        with torch.no_grad():
            before = scaled.clone()
            optimizer.step()
            cut = (settings.clamp * norms / (scaled * unit).norm(dim=1)).clamp(max=1)
            scaled.copy_(torch.where(open_facts[:, None], scaled * cut[:, None], before))
    return (start + scaled * unit).detach()
