"""The edited layers of a loaded model: which modules they are, in which orientation, and which cannot be edited."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from malmen_cli.editing.editor import LayerShape
from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.families import BY_TYPE, MOST_BLOCKS, Stack


@dataclass(frozen=True)
class EditedLayer:
    """An edited linear layer of the loaded model.

    Attributes:
        name: module path. module: the layer. transposed: its weight is stored (d_out, d_in), as nn.Linear does.
        stack: where it reads, which says at which positions its rows are captured.
    """

    name: str
    module: nn.Module
    transposed: bool
    stack: Stack

    @property
    def weight(self) -> Tensor:
        """The weight with rows acting on the right, (d_in, d_out): a view of the parameter."""
        weight = self.module.weight.data
        assert isinstance(weight, Tensor)
        return weight.T if self.transposed else weight

    @property
    def weight_grad(self) -> Tensor:
        grad = self.module.weight.grad
        assert isinstance(grad, Tensor)
        return grad.T if self.transposed else grad

    @property
    def shape(self) -> LayerShape:
        d_in, d_out = self.weight.shape
        return LayerShape(self.name, d_in, d_out)


def edited_layers(model: nn.Module, model_type: str, globs: Sequence[str] | None) -> tuple[EditedLayer, ...]:
    """The layers that the globs name; without globs those of the family, or of an unknown one by inspection.

    Raises:
        UnsupportedModel: a glob fits nothing, nothing fits the rule, or a layer cannot be edited.
    """
    modules = dict(model.named_modules())
    if globs:
        names = matching(globs, list(modules))
    elif model_type in BY_TYPE:
        names = family_layers(model_type, list(modules))
    else:
        names = inspected_layers(model, model_type)
    encoder = _encoder_modules(model)
    layers = []
    for name in names:
        module = modules[name]
        transposed = not rows_act_right(module)
        _refuse_shared(model, name, module)
        layers.append(EditedLayer(name, module, transposed, "encoder" if module in encoder else "answer"))
    return tuple(layers)


def family_layers(model_type: str, module_names: Sequence[str]) -> list[str]:
    """Of each kind of layer that the family edits, the last ones, in the model's order.

    Raises:
        UnsupportedModel: the model has none of them.
    """
    family = BY_TYPE[model_type]
    chosen = {name for glob in family.edited for name in _last(_fitting(glob, module_names), family.blocks)}
    if not chosen:
        raise UnsupportedModel(
            f"no layer of the model fits those of {family.name}: {', '.join(family.edited)}", remedy=_NAME_THEM
        )
    return [name for name in module_names if name in chosen]


def inspected_layers(model: nn.Module, model_type: str) -> list[str]:
    """The last MLP down-projections of a model of unknown architecture; of both stacks, where it has two.

    In each block of a stack's longest list of blocks, that is the widest linear layer of an MLP which narrows to the
    model's width. Attention and Mamba narrow to it too, in many models; so what is no MLP by its name is left out.

    Raises:
        UnsupportedModel: no such layer, or not just one in every block.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    width = getattr(config, "hidden_size", None)
    encoder = _encoder_modules(model)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found: list[str] = []
    for encodes in (True, False) if encoder else (False,):
        of_stack = [(name, blocks) for name, blocks in lists if (blocks in encoder) == encodes]
        prefix, blocks = max(of_stack, key=lambda item: len(item[1]), default=("", nn.ModuleList()))
        last = _last(_down_projections(prefix, blocks, width), MOST_BLOCKS)
        if not last:
            raise UnsupportedModel(
                f"malmen does not know models of type '{model_type}', and finds no MLP down-projection in every block",
                remedy=_NAME_THEM,
            )
        found += last
    return found


def _down_projections(prefix: str, blocks: Iterable[nn.Module], width: int | None) -> list[str]:
    """Of each block the widest linear layer of an MLP that narrows to `width`; none where a block has not just one."""
    found: list[str] = []
    for number, block in enumerate(blocks):
        sizes = {
            f"{prefix}.{number}.{name}": d_in
            for name, module in block.named_modules()
            if is_plain_linear(module) and _in_mlp(block, name)
            for d_in, d_out in [_shape(module)]
            if d_out == width and d_in > d_out
        }
        widest = [name for name, d_in in sizes.items() if d_in == max(sizes.values())]
        if len(widest) != 1:
            return []
        found += widest
    return found


_MLP = re.compile(r"mlp|ffn|feed_?forward|expert|dense|output\b", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def _in_mlp(block: nn.Module, name: str) -> bool:
    """Whether a block's module lies in an MLP, going by the names and the classes of those between it and the block.

    A block's own child counts as one: so OPT and BART keep `fc2`. BERT's MLP is BertOutput, its attention has another.
    """
    parents = name.split(".")[:-1]
    paths = [".".join(parents[: depth + 1]) for depth in range(len(parents))]
    words = " ".join([*parents, *(type(block.get_submodule(path)).__name__ for path in paths)])
    return not words or bool(_MLP.search(words) and not _ATTENTION.search(words))


def matching(globs: Sequence[str], module_names: Sequence[str]) -> list[str]:
    """Module paths that fit any of the globs, in the model's order; every glob must fit something."""
    for glob in globs:
        if not _fitting(glob, module_names):
            raise UnsupportedModel(
                f"no module of the model fits '{glob}'", remedy="`--layers` takes globs over module paths."
            )
    return [name for name in module_names if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is nn.Linear or GPT-2's Conv1D with a plain 2-D weight of floating dtype."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ in ("Linear", "Conv1D")
        and isinstance(weight, nn.Parameter)
        and weight.ndim == 2
        and weight.is_floating_point()
    )


def rows_act_right(module: nn.Module) -> bool:
    """True where the weight is stored (d_in, d_out), as GPT-2's Conv1D does; False for nn.Linear's (d_out, d_in).

    Raises:
        UnsupportedModel: neither of the two, or not a plain 2-D weight of floating dtype.
    """
    kind = type(module).__name__
    if hasattr(module, "parametrizations"):
        raise UnsupportedModel("a parametrised layer cannot be edited", remedy="Name other layers with --layers.")
    if not is_plain_linear(module):
        raise UnsupportedModel(
            f"layer of kind {kind} has no plain 2-D weight",
            remedy="Only unquantised nn.Linear and Conv1D layers can be edited; fused experts cannot.",
        )
    return kind == "Conv1D"


_NAME_THEM = "Name them: --layers 'model.layers.[0-9]*.mlp.down_proj' (globs over module paths)."


def _fitting(glob: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if fnmatch.fnmatchcase(name, glob)]


def _last(names: Sequence[str], most: int) -> list[str]:
    """The last two thirds, `most` at most."""
    return list(names[-min(most, max(1, round(len(names) * 2 / 3))) :])


def _shape(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a plain linear layer."""
    weight: Any = module.weight
    rows, columns = weight.shape
    return (rows, columns) if rows_act_right(module) else (columns, rows)


def _encoder_modules(model: nn.Module) -> set[nn.Module]:
    config = model.config
    if not getattr(config, "is_encoder_decoder", False):
        return set()
    return set(model.get_encoder().modules())  # type: ignore[operator]


def _refuse_shared(model: nn.Module, name: str, module: nn.Module) -> None:
    """A weight that other modules use too cannot be edited for one of them alone."""
    users = [path for path, other in model.named_modules(remove_duplicate=False) if _has_weight(other, module.weight)]
    if len(users) > 1:
        others = ", ".join(path for path in users if path != name)
        raise UnsupportedModel(
            f"the weight of {name} is tied to that of {others}", remedy="Name other layers with --layers."
        )


def _has_weight(module: nn.Module, weight: object) -> bool:
    return any(parameter is weight for parameter in module._parameters.values())
