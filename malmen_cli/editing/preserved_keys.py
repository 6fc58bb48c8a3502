"""Keys whose values an edit should leave alone, and what a solve needs of them."""

from __future__ import annotations

from functools import cached_property

import torch

from malmen_cli.editing.linear_algebra import gram, in_double
from malmen_cli.editing.shapes import Float, Tensor
from malmen_cli.errors import NumericalFailure


class PreservedKeys:
    """Keys K0 (m, d_in) whose values an edit should leave alone.

    Args:
        keys: rows whose Gram matrix is K0^T K0; more rows than columns are compressed to d_in rows with the same one.
        count: m, the number of keys the rows stand for, where it is not their number (rows compressed before).
    """

    def __init__(self, keys: Float[Tensor, "m d_in"], count: int | None = None) -> None:
        self.count = len(keys) if count is None else count
        if len(keys) > keys.shape[1]:
            # Not back to half precision: R sums over many rows, and would overflow float16 or lose bits that K0 has.
            keys = torch.linalg.qr(in_double(keys), mode="r").R.to(torch.promote_types(keys.dtype, torch.float32))
        self.keys = keys
        self._elsewhere: dict[torch.device, PreservedKeys] = {}

    def on(self, device: torch.device) -> PreservedKeys:
        """The same keys where a solve wants them, with what has been computed from them there."""
        if self.keys.device == device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = PreservedKeys(self.keys.to(device), self.count)
        return self._elsewhere[device]

    def forget(self) -> None:
        """Let go of what was computed from the keys: several matrices of d_in by d_in."""
        self._elsewhere.clear()
        for name in ("second_moment", "spectrum"):
            self.__dict__.pop(name, None)

    @cached_property
    def second_moment(self) -> Float[Tensor, "d_in d_in"]:
        """C0 = K0^T K0 / m, float64."""
        return gram(in_double(self.keys)).div_(self.count)

    @cached_property
    def spectrum(self) -> tuple[Float[Tensor, "d_in"], Float[Tensor, "d_in d_in"]]:
        """L and Q of C0 = Q L Q^T, float64: as much arithmetic as about five solves of the primal form.

        Raises:
            NumericalFailure: a preserved key is not finite.
        """
        if not bool(torch.isfinite(self.second_moment).all()):
            raise NumericalFailure(
                "preserved keys are not finite", remedy="Check the model, and the prompts whose keys they are."
            )
        values, vectors = torch.linalg.eigh(self.second_moment)
        return values.clamp(min=0), vectors
