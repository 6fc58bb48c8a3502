"""The memory that work on a model takes, reckoned from its configuration alone: no weight is read.

All figures are bytes. What is exact: weights, editor, the solve's matrices. What is reckoned: activations, rows, and
the libraries, since texts are known by their typical length only and attention by its outputs only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from malmen_cli.editing.editor import ROWS_AT_ONCE, LayerShape
from malmen_cli.editing.normal_equation import cheapest_form
from malmen_cli.language_models.edited_layers import EditedLayer, edited_layers, is_plain_linear, rows_act_right
from malmen_cli.language_models.label_losses import LABELS as LABELS_AT_A_TIME
from malmen_cli.language_models.loading import empty_model, read_config
from malmen_cli.language_models.texts import tokens_at_once

Work = Literal["apply", "train", "eval"]
"""A plan tries an apply in memory and takes what that takes."""

LIBRARIES = 410 << 20
"""Resident bytes of Python, torch (its CPU build), transformers and malmen, with no model loaded, and of the code that
the first passes bring in."""

TOKENS, LABELS = 12, 2
"""Tokens that a text is taken to have, and those of them that are supervised, where the texts are not known."""

WIDE = 4  # bytes of a number that losses and rows of value differences are taken in
DOUBLE = 8  # bytes of a number of a solve


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        facts: an apply's active facts, an evaluation's, or the training rows. per_solve: facts of one solve; None: all.
        batch_tokens: padded tokens of a batch; None: `tokens_at_once`. editor_rows: rows of the hyper-network's chunks.
        rank, blocks: of the hyper-network. preserved_keys: rows of K0 per layer.
        copies: of a method that solves for no rows, float32 copies of the edited weights that it holds; else None.
        covariances: it keeps a float32 covariance of keys (d_in, d_in) per layer.
        tokens, labels: of a text, the mean.
    """

    work: Work
    facts: int = 256
    per_solve: int | None = None
    batch_tokens: int | None = None
    editor_rows: int = 4096
    rank: int = 256
    blocks: int = 2
    preserved_keys: int = 8192
    copies: int | None = None
    covariances: bool = False
    tokens: float = TOKENS
    labels: float = LABELS


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for.

    Attributes:
        weights: of the model, tied ones once. base_copies: tensors of edited layers beside the model's.
        batch: one batch's activations and logits; of an apply a chunk of the hyper-network's, which is made when the
            batches are gone, if that is more. editor: its tensors and whatever is kept for each of them.
        solve: the normal equations. rows: keys, value gradients and value differences. saving: a training state while
            it is written. libraries: resident before any model is.
    """

    work: Work
    weights: int
    base_copies: int
    batch: int
    editor: int
    solve: int
    rows: int
    saving: int
    libraries: int = LIBRARIES

    @property
    def total(self) -> int:
        """The peak. Training keeps its solutions while the model is differentiated; an apply captures first, then
        solves; a state is saved between two steps."""
        during = self.batch + self.solve if self.work == "train" else max(self.batch, self.solve)
        held = self.weights + self.base_copies + self.editor + self.rows
        return self.libraries + held + max(during, self.saving)

    @property
    def working(self) -> int:
        """Of the peak, what is where the model's inputs go, the weights left out; rows are kept on the host."""
        return self.total - self.libraries - self.weights - self.rows

    def as_dict(self) -> dict[str, int | str]:
        return {**asdict(self), "total": self.total}


def plan_memory(folder: Path, layers: Sequence[str] | None, job: Job, dtype: torch.dtype | None = None) -> Footprint:
    """The footprint of a job on the model of a folder, in `dtype` or the one that it is stored in.

    Raises:
        UnsupportedModel: transformers cannot build it, or layers that cannot be edited.
    """
    config = read_config(folder)
    model = planned_model(folder, config)
    found = edited_layers(model, config.model_type, layers)
    return footprint(model, found, job, dtype or stored_dtype(folder, config))


def planned_model(folder: Path, config: Any) -> nn.Module:
    """The model of a folder without memory, with those of its weights untied that the files hold apart.

    T5 v1.1 has an output head of its own, which transformers learns from the files alone.

    Raises:
        UnsupportedModel: transformers cannot build it.
    """
    model = empty_model(folder, config)
    held = _held_names(folder)
    first = set[int]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in held and id(parameter) in first:
            path, _, own = name.rpartition(".")
            apart = nn.Parameter(torch.empty_like(parameter), requires_grad=parameter.requires_grad)
            model.get_submodule(path).register_parameter(own, apart)
        elif name in held:
            first.add(id(parameter))
    return model


def footprint(model: nn.Module, layers: Sequence[EditedLayer], job: Job, dtype: torch.dtype) -> Footprint:
    """Of a model, which may be without memory. Per layer w = d_in d_out weights, L layers, n rows in a solve:

    - base_copies: an apply keeps each edited tensor and its bytes, 2 w; a training step two copies of the base, the
      weights' gradients and their unscaled copies, 4 w.
      A method that solves for no rows says how many float32 copies it holds besides.
    - solve, of a method that keeps covariances: all of them summed in float64 when they are made, or one layer's
      equation and its factor.
    - editor: 4 bytes a number, learned or of K0; in training what is learned five times (it, its gradient, two moments,
      the best one), K0 twice, and a chunk's activations, which are kept for the gradient.
    - saving: what a state holds, the gradients left out, twice: it is cloned, then packed.
    - rows: n (d_in + d_out) as captured, in training, in mapped files, which give way where memory is short. An apply
      writes them to files as they are captured.
    """
    size = dtype.itemsize
    shapes = [layer.shape for layer in layers]
    edited = sum(shape.d_in * shape.d_out for shape in shapes)
    per_fact = [job.tokens if layer.stack == "encoder" else job.labels for layer in layers]
    learned, anchors = _editor_numbers(shapes, job)
    training = job.work == "train"
    per_solve = min(job.facts, job.per_solve or job.facts)
    forms = [
        _solve(shape, math.ceil(per_solve * rows), _anchors(shape, job), repeated=training)
        for shape, rows in zip(shapes, per_fact, strict=True)
    ]
    kept, working = [form.kept for form in forms], max((form.working for form in forms), default=0)
    # One solution at a time is enough for an apply, but that of the layer before is there until the next one is.
    held = sum(kept) if training else sum(sorted(kept)[-2:])
    moments = [form.moments for form in forms]
    solve = held + working + (sum(moments) if training else max(moments, default=0))
    covariances, copies = _covariances(shapes, job), 0
    if job.copies is not None:  # it changes the weights while the model is run
        solve, copies = 0, WIDE * job.copies * edited
        if covariances:
            solve = DOUBLE * max(sum(covariances), 2 * max(covariances))
    row_bytes = size * (2 if training else 1)  # training keeps (u, g) as captured, and K0's candidates
    rows = sum(
        math.ceil(job.facts * count) * (shape.d_in * row_bytes + shape.d_out * (size if training else WIDE))
        for shape, count in zip(shapes, per_fact, strict=True)
    )
    chunk = min(job.editor_rows, math.ceil(per_solve * max(per_fact, default=0)))
    widest = max((shape.d_in + shape.d_out for shape in shapes), default=0)
    # Where nothing is kept for a gradient: (u, g), z and what a block makes of it, however many blocks there are.
    network = WIDE * chunk * widest * (2 + 4 * job.blocks if training else 6)
    batch = batch_bytes(model, layers, job, dtype)
    numbers = 5 * learned + 2 * anchors if training else learned + anchors + sum(covariances)
    return Footprint(
        work=job.work,
        weights=weight_bytes(model, dtype),
        base_copies=edited * 4 * size if training else 2 * edited * size + copies,
        batch=batch if training else max(batch, network),
        editor=WIDE * numbers + (network if training else 0),
        solve=solve,
        rows=rows if training else 0,
        saving=WIDE * 2 * (4 * learned + 2 * anchors) if training else 0,
    )


def _covariances(shapes: Sequence[LayerShape], job: Job) -> list[int]:
    """Numbers of each covariance of keys that is kept."""
    return [shape.d_in**2 for shape in shapes] if job.covariances else []


def needs(shapes: Sequence[LayerShape], job: Job, dtype: torch.dtype) -> dict[str, int]:
    """Bytes beside the weights that the work cannot do without, whatever the texts are, by what they are for.

    A lower bound: edited tensors beside the model's, the largest solve's matrices, and what training keeps of an editor
    (an apply's has been loaded before the model is).
    """
    edited = dtype.itemsize * sum(shape.d_in * shape.d_out for shape in shapes)
    rows = min(job.facts, job.per_solve or job.facts)
    forms = [_solve(shape, rows, _anchors(shape, job), repeated=job.work == "train") for shape in shapes]
    if job.copies is not None:
        found = {"edited layers": 2 * edited + WIDE * job.copies * edited // dtype.itemsize}
        covariances = _covariances(shapes, job)
        return found | ({"covariances of keys": WIDE * sum(covariances)} if covariances else {})
    if job.work != "train":
        return {"edited layers": 2 * edited, "solve": max((form.kept for form in forms), default=0)}
    learned, anchors = _editor_numbers(shapes, job)
    return {
        "edited layers": 4 * edited,
        "editor": WIDE * (4 * learned + anchors),
        "solve": sum(form.kept for form in forms),
    }


def stored_dtype(folder: Path, config: Any) -> torch.dtype:
    """What `load_model` loads a model in: what its configuration says, else its weights' own; float32 where neither."""
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(named, str):
        named = getattr(torch, named, None)
    if isinstance(named, torch.dtype):
        return named
    from safetensors import SafetensorError, safe_open

    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    for path in sorted(folder.glob("*.safetensors"))[:1]:
        try:
            with safe_open(str(path), framework="numpy") as file:
                found = (known.get(file.get_slice(name).get_dtype()) for name in file.keys())  # noqa: SIM118
                return next((dtype for dtype in found if dtype is not None), torch.float32)
        except (OSError, RuntimeError, SafetensorError):
            break
    return torch.float32


def _held_names(folder: Path) -> set[str]:
    """Names of the tensors in a folder's weight files, by their headers; of a damaged file none."""
    from safetensors import SafetensorError, safe_open

    names = set[str]()
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(str(path), framework="numpy") as file:
                names.update(file.keys())
        except (OSError, RuntimeError, SafetensorError):
            continue
    return names


def weight_bytes(model: nn.Module, dtype: torch.dtype, modules: Iterable[nn.Module] | None = None) -> int:
    """Bytes of parameters and buffers, or of those of some modules alone; what is tied counts once.

    Some models keep some of their weights in float32 where the others are float16 (T5 its `wo`).
    """
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set[str]()
    wide |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    total, seen = 0, set[int]()
    for module in [model] if modules is None else modules:
        for tensor in [*module.parameters(), *module.buffers()]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            kept_wide = wide and wide.intersection(names.get(id(tensor), "").split("."))
            of_model = id(tensor) in names and tensor.is_floating_point()
            item = max(WIDE, dtype.itemsize) if kept_wide else dtype.itemsize
            total += tensor.numel() * (item if of_model else tensor.dtype.itemsize)
    return total


def batch_bytes(model: nn.Module, layers: Sequence[EditedLayer], job: Job, dtype: torch.dtype) -> int:
    """One padded batch of T tokens with n labels, item bytes a number:

    item T (3/2 sum of d_out over the linear layers from the first edited one up + 3 widest d_out), what the graph keeps
    of each layer's surroundings and what a pass holds besides, and k V (4 * 2) of logits over V words and their
    gradients, which are there for k labels at a time (`label_losses`), and of a 16-bit model k V item besides. Where a
    training compares them with the base's, k V (4 * 5). MEMIT, the method with covariances, holds n V (4 * 4), and of a
    16-bit model 2 n V item besides. An encoder-decoder's stacks share T.
    """
    tokens = min(job.batch_tokens or tokens_at_once(dtype), math.ceil((job.per_solve or job.facts) * job.tokens))
    names = {layer.name for layer in layers}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    above, widest, reached = 0, 0, False
    for name, module in model.named_modules():
        if module is head or not is_plain_linear(module):
            continue
        widest = max(widest, _out(module))
        reached = reached or name in names
        above += _out(module) if reached else 0
    vocabulary = head.weight.shape[0] if head is not None else 0
    labels = max(1, math.ceil(tokens * job.labels / job.tokens))
    narrow = dtype.itemsize if dtype.itemsize < WIDE else 0
    if job.covariances:
        per_logit = 4 * WIDE + 2 * narrow
    else:
        labels = min(labels, LABELS_AT_A_TIME)
        per_logit = WIDE * (5 if job.work == "train" else 2) + narrow
    return dtype.itemsize * tokens * (3 * above + 6 * widest) // 2 + labels * vocabulary * per_logit


@dataclass(frozen=True)
class _Solve:
    """Bytes of one layer's solve: what its solution keeps, what is needed besides while it is made, and what stays with
    the preserved keys: C0, and of repeated solves its eigenvectors."""

    kept: int
    working: int
    moments: int


def _solve(shape: LayerShape, rows: int, anchors: int, *, repeated: bool) -> _Solve:
    """The form that `NormalEquation` picks, d = d_in, o = d_out, n rows, k = n + anchors, float64.

    primal: kept A and its factor, 2 d^2, and S, d o; besides U^T U, d^2, and three matrices of d o (U^T D, and what two
    triangular solves leave behind).
    kernel: kept V, A, its factor, X and S, k d + 2 k^2 + k o + d o; besides the rows as they came, n (d + o), the right
    side and a triangular solve's, 2 k o, or four matrices of d o for the change's figures.
    spectral: kept U, U F, U Q, the factor, X and S, 3 n d + 2 n^2 + n o + d o; besides n d + 3 n o.
    """
    d, o, n, k = shape.d_in, shape.d_out, rows, rows + anchors
    form = cheapest_form(n, d, o, preserved=anchors, repeated=repeated)
    # Training also solves for single facts, whose form may be another: what stays of that is there beside the largest.
    forms = {form, cheapest_form(1, d, o, preserved=anchors, repeated=True)} if repeated else {form}
    moments = (2 if repeated else 1) * d * d if anchors and forms != {"kernel"} else 0
    if form == "primal":
        kept, working = 2 * d * d + d * o, d * d + 3 * d * o
    elif form == "kernel":
        kept, working = k * d + 2 * k * k + k * o + d * o, n * (d + o) + max(2 * k * o, 4 * d * o)
    else:
        kept, working = 3 * n * d + 2 * n * n + n * o + d * o, n * d + 3 * n * o
    return _Solve(DOUBLE * kept, DOUBLE * working, DOUBLE * moments)


def _anchors(shape: LayerShape, job: Job) -> int:
    """Rows that preserved keys add to a solve: past d_in of them they are compressed."""
    return min(job.preserved_keys, shape.d_in)


def _editor_numbers(shapes: Sequence[LayerShape], job: Job) -> tuple[int, int]:
    """Numbers of an editor: per layer shape `blocks` blocks of A, B and b, per layer s, t and the moments; and K0."""
    networks = sum(
        job.blocks * (2 * job.rank + 1) * (d_in + d_out)
        for d_in, d_out in {(shape.d_in, shape.d_out) for shape in shapes}
    )
    per_layer = sum((2 * job.blocks + 6) * (shape.d_in + shape.d_out) for shape in shapes)
    return networks + per_layer, sum(_anchors(shape, job) * shape.d_in for shape in shapes)


def _out(module: nn.Module) -> int:
    weight: Any = module.weight
    width: int = weight.shape[1 if rows_act_right(module) else 0]
    return width


def job_of(
    work: Work,
    config: Mapping[str, Any],
    *,
    facts: int,
    batch_tokens: int | None = None,
    preserved_keys: int | None = None,
) -> Job:
    """The job that an editor's stored settings (`config.TrainingConfig`) make of some facts.

    Args:
        batch_tokens: of a training None stands for the settings'. preserved_keys: where not those of the settings.
    """
    editor = config["editor"]
    return Job(
        work=work,
        facts=facts,
        per_solve=config["facts_per_step"] if work == "train" else None,
        batch_tokens=config["batch_tokens"] if work == "train" and batch_tokens is None else batch_tokens,
        editor_rows=config["editor_rows"] if work == "train" else ROWS_AT_ONCE,
        rank=editor["rank"],
        blocks=editor["blocks"],
        preserved_keys=editor["preserved_keys"] if preserved_keys is None else preserved_keys,
    )
