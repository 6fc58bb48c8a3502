"""MEMIT: mass-editing memory in a transformer (Meng et al., arXiv 2210.07229)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from malmen_cli.editing.checked_tensors import check_tensors
from malmen_cli.editing.editor import LayerShape
from malmen_cli.editing.linear_algebra import Factor, gram, in_double, product
from malmen_cli.errors import NumericalFailure, UsageError
from malmen_cli.facts import Fact, printable
from malmen_cli.language_models.heads import wide
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.methods.key_covariance import key_covariance
from malmen_cli.methods.memit_targets import Lookup, target_outputs
from malmen_cli.methods.residual_stream import ResidualStream
from malmen_cli.methods.set_method import Progress, SetMethod, silent
from malmen_cli.methods.settings import MemitSettings
from malmen_cli.methods.subject_span import last_prompt_token, last_subject_token

_NAMED = 5  # facts that are told of in one message


class Memit(SetMethod):
    """Targets at the end of each subject, after the last edited block; then layer by layer, each on what the layers
    before it have left: `(lambda C0 + K^T K) S = K^T R / r`, R what is still missing and r the layers still to come.

    Attributes:
        covariances: C0 per layer (d_in, d_in), float32: the mean second moment of keys over running text.
    """

    copies = 2
    settings: MemitSettings

    def __init__(self, settings: MemitSettings, shapes: Sequence[LayerShape]) -> None:
        super().__init__(settings, shapes)
        self.covariances: list[Tensor] = []

    @classmethod
    def pick(cls, settings: MemitSettings, shapes: Sequence[LayerShape]) -> Sequence[LayerShape]:
        """The first half: what the last block says of a subject, nothing reads any more."""
        return shapes[: max(1, len(shapes) // 2)]

    def prepare(
        self, model: LanguageModel, facts: Sequence[Fact], text: str | None, *, progress: Progress = silent
    ) -> None:
        """The keys' covariance, from running text. See `SetMethod.prepare`."""
        ResidualStream(model)
        if text is None:
            raise UsageError("memit needs running text, for the covariance of keys", remedy="Give some: --text FILE.")
        found, _ = key_covariance(
            model,
            text,
            tokens=self.settings.covariance_tokens,
            batch_tokens=self.settings.batch_tokens,
            progress=progress,
        )
        self.covariances = [covariance.float() for covariance in found]

    def tensors(self) -> dict[str, Tensor]:
        """`covariance.N` per layer."""
        return {f"covariance.{place}": covariance for place, covariance in enumerate(self.covariances)}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See `SetMethod.load_tensors`."""
        widths = {f"covariance.{place}": shape.d_in for place, shape in enumerate(self.shapes)}
        check_tensors(tensors, {name: ((width, width), {torch.float32}) for name, width in widths.items()})
        self.covariances = [tensors[name] for name in widths]

    def check(self, model: LanguageModel, facts: Sequence[Fact]) -> None:
        """Facts whose prompt does not name their subject are refused, unless the settings say otherwise."""
        if self.settings.without_subject != "refuse":
            return
        without = [fact.prompt for fact in facts if _subject_token(model.tokenizing, fact) is None]
        if without:
            named = ", ".join(f"'{printable(prompt)}'" for prompt in without[:_NAMED])
            more = f" and {len(without) - _NAMED:,} more" if len(without) > _NAMED else ""
            raise UsageError(
                f"memit edits at a fact's subject, and {len(without):,} of {len(facts):,} facts have none in their "
                f"prompt: {named}{more}",
                remedy='Give their `subject`, or set without_subject = "last token" in the settings of memit.',
            )

    def shifts(self, model: LanguageModel, facts: Sequence[Fact], *, progress: Progress = silent) -> list[Tensor]:
        """See `SetMethod.shifts`."""
        if not facts:
            return [torch.zeros(shape.d_in, shape.d_out) for shape in model.shapes]
        self.check(model, facts)
        stream = ResidualStream(model)
        prefixes = contexts(model, self.settings)
        lookups = [lookup_of(model.tokenizing, fact, prefixes) for fact in facts]
        base = model.weights()
        try:
            with torch.no_grad():
                return self._spread(stream, lookups, base, progress)
        finally:
            model.set_weights(base)

    def _spread(
        self, stream: ResidualStream, lookups: Sequence[Lookup], base: Sequence[Tensor], progress: Progress
    ) -> list[Tensor]:
        model, settings = stream.model, self.settings
        targets = target_outputs(stream, lookups, settings, progress=progress)
        heads = [lookup.heads() for lookup in lookups]
        plain = [texts[0] for texts in heads]
        weights = [wide(weight) for weight in base]
        shifts = []
        for place, covariance in enumerate(self.covariances):
            keys = _mean_keys(stream, heads, place, settings.batch_tokens)
            _, now = stream.read(plain, [], settings.batch_tokens)
            residuals = (targets - now.to(targets.dtype)) / (len(weights) - place)
            shift = spread_shift(keys, residuals, covariance.to(keys.device), settings.covariance_weight)
            if not bool(torch.isfinite(shift).all()):
                raise NumericalFailure(
                    f"memit found no finite shift for {model.layers[place].name}",
                    remedy="Set a smaller target_learning_rate or a larger covariance_weight in its settings.",
                )
            weights[place] = weights[place] + shift.to(weights[place])
            model.set_weights(weights)
            shifts.append(shift.float())
            progress("layers", place + 1, len(weights))
        return shifts


def spread_shift(keys: Tensor, residuals: Tensor, covariance: Tensor, weight: float) -> Tensor:
    """S (d_in, d_out) float64 of `(weight C0 + K^T K) S = K^T R` (arXiv 2210.07229, equation 14).

    Args:
        keys: K (n, d_in). residuals: R (n, d_out). covariance: C0 (d_in, d_in).
    """
    k = in_double(keys)
    matrix = gram(k).add_(in_double(covariance), alpha=weight)
    return Factor(matrix).solve(product(k.T, in_double(residuals)))


def contexts(model: LanguageModel, settings: MemitSettings) -> list[str]:
    """What is put before a prompt: the settings' prefixes, each as the model goes on with it, and a full stop."""
    said = model.generate(settings.prefixes, settings.prefix_tokens, batch_tokens=settings.batch_tokens)
    return [f"{prefix} {x.text}".strip() + ". " for prefix, x in zip(settings.prefixes, said, strict=True)]


def lookup_of(tokenizing: Tokenizing, fact: Fact, prefixes: Sequence[str]) -> Lookup:
    """A fact's texts; behind a context that leaves no room for it in the model's positions it is left out."""
    # Not in a context either, where the prompt alone does not name it: keys would be of two kinds of token.
    subject = fact.subject if _subject_token(tokenizing, fact) is not None else None
    texts, places = [tokenizing(fact.prompt, fact.target)], [_place(tokenizing, subject, fact.prompt)]
    for prefix in prefixes:
        text = tokenizing.fits(prefix + fact.prompt, fact.target)
        if text is not None:
            texts.append(text)
            places.append(_place(tokenizing, subject, prefix + fact.prompt))
    essence = None
    if subject:
        ids = tuple(tokenizing.prompt_ids(f"{subject} is a"))
        place = last_subject_token(tokenizing, f"{subject} is a", subject)
        if place is not None and (tokenizing.limit is None or len(ids) <= tokenizing.limit):
            essence = (Tokens(ids, (0,)), place)
    return Lookup(tuple(texts), tuple(places), essence)


def _place(tokenizing: Tokenizing, subject: str | None, prompt: str) -> int:
    found = last_subject_token(tokenizing, prompt, subject) if subject else None
    return last_prompt_token(tokenizing, prompt) if found is None else found


def _subject_token(tokenizing: Tokenizing, fact: Fact) -> int | None:
    return last_subject_token(tokenizing, fact.prompt, fact.subject) if fact.subject else None


def _mean_keys(stream: ResidualStream, heads: Sequence[Sequence[Tokens]], layer: int, batch_tokens: int) -> Tensor:
    """Per fact (n, d_in), float32 or wider: half its key in the prompt alone, half the mean behind contexts."""
    flat = [text for texts in heads for text in texts]
    [keys], _ = stream.read(flat, [layer], batch_tokens)
    found = []
    for own in wide(keys).split([len(texts) for texts in heads]):
        found.append(own[0] if len(own) == 1 else (own[0] + own[1:].mean(0)) / 2)
    return torch.stack(found)
