"""How long an apply takes, counted from a model's configuration and from its facts' tokens, without trying it.

What is counted is divided by rates (`rates.py`); nothing here was fitted to how long an apply has taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from malmen_cli.editing.linear_algebra import EIGENVALUE_STEPS, PROBES
from malmen_cli.editing.normal_equation import cheapest_form
from malmen_cli.language_models.arithmetic import Arithmetic, BlockRates, Passes
from malmen_cli.operations.rates import Rates

WIDE, DOUBLE = 4, 8  # bytes of a number of value differences, and of a number of a solve

END = 0.27
"""Share of the time that loading the libraries takes which Python takes to end with them loaded. Measured of a process
that does nothing else (1.0 s of 3.7 s); no apply played a part."""

PHASES = ("start", "check", "load", "capture", "ask before", "solve", "ask after", "write", "end")


@dataclass(frozen=True)
class LayerCounts:
    """One edited layer.

    Attributes:
        d_in, d_out: of its weight. new: rows to be captured. rows: of all active facts. facts: those facts. anchors:
            rows that preserved keys add. item: bytes of a number of the weight as it is stored. key_item: of a key's.
    """

    d_in: int
    d_out: int
    new: int
    rows: int
    facts: int
    anchors: int
    item: int
    key_item: int

    @property
    def row_bytes(self) -> int:
        """Of one stored row."""
        return self.d_in * self.key_item + self.d_out * WIDE

    @property
    def weight_bytes(self) -> int:
        return self.d_in * self.d_out * self.item


@dataclass(frozen=True)
class Counts:
    """What an apply is made of.

    Attributes:
        model: of the language model. capture: the new facts' edit prompts. asked: all that is asked before and after.
        old: what is asked after alone. answers: sampled free answers, of each time. texts: that are tokenised.
        rank, blocks: of the hyper-network. weights: bytes of the loaded model. checkpoint: bytes of its files, which
            are hashed. shards, largest_shard: bytes of those that are written anew. editor: bytes of its tensors.
        kept: share of what is asked twice whose hidden states below the edited layers are kept from one time to the
            next. noted: of what is asked, what is captured before, in the same blocks.
    """

    model: Arithmetic
    layers: tuple[LayerCounts, ...]
    capture: Passes
    asked: Passes
    old: Passes
    answers: Passes
    texts: int
    rank: int
    blocks: int
    weights: int
    checkpoint: int
    shards: int
    largest_shard: int
    editor: int
    kept: float = 0.0
    noted: Passes = field(default_factory=Passes)

    @property
    def tensor_bytes(self) -> int:
        """Of the edited tensors."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def new_row_bytes(self) -> int:
        return sum(layer.new * layer.row_bytes for layer in self.layers)


def forecast(counts: Counts, rates: Rates) -> dict[str, float]:
    """Seconds of an apply by `PHASES`, in which it goes through them.

    The files of the model are taken to be in the system's cache: they have just been hashed.
    """
    model, run = counts.model, rates.model
    network = sum(layer.new * _network(layer, counts.rank, counts.blocks) for layer in counts.layers)
    before, after = asking(counts, run)
    answers = run.seconds(model, counts.answers)
    tensors, rows = counts.tensor_bytes, counts.new_row_bytes
    return {
        "start": rates.start,
        "check": counts.checkpoint / rates.digest,
        "load": (counts.weights + counts.editor) / rates.copy + counts.texts / rates.texts,
        # The base's bytes are put in, and those of now again, each checked as they are read.
        "capture": run.seconds(model, counts.capture, differentiated=True)
        + network / rates.single
        + rows / rates.copy
        + 2 * tensors / rates.digest,
        "ask before": before + answers,
        "solve": sum(solve_seconds(layer, rates) for layer in counts.layers) + rows / rates.digest,
        "ask after": after + answers + run.seconds(model, counts.old),
        # Tensors are hashed in the old shard's copy, in the new shard and as objects.
        "write": (rows + tensors + counts.shards) / rates.write + 3 * tensors / rates.digest,
        "end": END * rates.start,
    }


def asking(counts: Counts, run: BlockRates) -> tuple[float, float]:
    """Seconds of asking before and of asking the same after: blocks that no edit changes are run once for each text."""

    def spared(work: Passes) -> float:
        return counts.kept * (run.seconds(counts.model, work) - run.seconds(counts.model, work, resumed=True))

    whole = run.seconds(counts.model, counts.asked)
    return whole - spared(counts.noted), whole - spared(counts.asked)


def _network(layer: LayerCounts, rank: int, blocks: int) -> int:
    """Floating-point operations of the hyper-network per row: x A B in every block."""
    return blocks * 4 * (layer.d_in + layer.d_out) * rank


def solve_seconds(layer: LayerCounts, rates: Rates) -> float:
    """Reading one layer's rows, solving for its shift, and the figures of the change.

    With d = d_in, o = d_out, n rows, m anchors, k = n + m, in floating-point operations, float64:
    primal (k >= d): U^T U n d^2 (half of it), U^T D 2 n d o, C0 m d^2, Cholesky d^3 / 3, two triangular solves of
    d^2 o each, or beside anchors d^2 n where that is less.
    kernel: V V^T k^2 d, Cholesky k^3 / 3, two triangular solves k^2 o each, V^T X 2 k d o.
    Either looks at its residual along p directions: products of p columns with whatever is there; and for the condition
    number reads its matrix, the primal form its two triangular factors too, once per step towards the eigenvalues.
    figures: the Gram matrix of the change over its smaller side, and its eigenvalues.
    """
    d, o, n, m = layer.d_in, layer.d_out, layer.rows, layer.anchors
    k = n + m
    columns = min(n, o) if m else o
    if cheapest_form(n, d, o, preserved=m, repeated=False) == "primal":
        products, side, sweeps = n * d * d + 2 * n * d * o + m * d * d, d, 3 * EIGENVALUE_STEPS
        products += 2 * PROBES * (d * d + 2 * d * o)
    else:
        products, side, sweeps, columns = k * k * d + 2 * k * d * o, k, EIGENVALUE_STEPS, o
        products += 2 * PROBES * (k * o + 3 * k * d + d * o)
    narrow = min(d, o)
    seconds = (products + 2 * d * o * narrow) / rates.double + 2 * side * side * columns / rates.triangular
    seconds += side**3 / 3 / rates.factor + 4 * narrow**3 / 3 / rates.eigenvalues
    seconds += sweeps * DOUBLE * side * side / rates.sweep
    seconds += layer.facts / rates.rows + n * layer.row_bytes / rates.digest + DOUBLE * n * (d + o) / rates.copy
    # W0, the edited weight, their differences and what was lost in rounding: some 15 copies in float64.
    seconds += 15 * DOUBLE * d * o / rates.copy + 3 * layer.weight_bytes / rates.digest
    return seconds
