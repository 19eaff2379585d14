"""What becomes of the optimizer's moments when codes flip or trajectories change: SeMI's question (AQUATIC-Diff), with an answer in shares.

A codeword's gradient is a sum over the groups that use it, so its moments speak of the members that it had. After flips, of codeword k

    stale(k) = (left(k) + came(k)) / (members before(k) + came(k)),

and of a row's scale the share of its groups that flipped. "semi" lets the past of every entry count for 1 − stale of what it did (Adam.forget);
where a codebook is stored through its structure (mirrored, hierarchical) a stored entry counts the members of all codewords that it is part
of. When another trajectory begins, entries whose first moment points against the first gradient of the new one lose it. "full" forgets everything at every
flip and every jump.

Deviation: AQUATIC-Diff resets entries altogether; here the share decides, since at 2 bits a codeword has some hundred members of which one leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from .adam import Adam
from .code_steps import Flips
from .tunable import TunableLayer

if TYPE_CHECKING:
    from .student import Student


def stale_codewords(layers: Mapping[TunableLayer, Flips]) -> torch.Tensor:
    """Of layers that share one parameter `stored`: the stale share of each stored entry, (M, stored entries, 1). Codes have moved already."""
    changed, before = [], []
    for layer, flips in layers.items():
        n_books, n_entries = layer.codes.shape[2], layer.expansion.shape[0]
        left, came = (_counted(codes, n_books, n_entries) for codes in (flips.before, flips.after))
        after = _counted(layer.codes.flatten(0, 1), n_books, n_entries)
        # Each book's own flips: where one of two codes stayed, the members of its book did not change.
        kept = _counted(torch.where(flips.before == flips.after, flips.after, -1), n_books, n_entries)
        part = (layer.expansion != 0).float()
        changed.append((left + came - 2 * kept) @ part)
        before.append((after + left - kept) @ part)  # members before the flips, and those that came
    return (torch.stack(changed).sum(0) / torch.stack(before).sum(0).clamp(min=1)).unsqueeze(2)


def _counted(codes: torch.Tensor, n_books: int, n_entries: int) -> torch.Tensor:
    """How often each entry of each book occurs in codes (N, M); −1 counts nowhere."""
    counts = torch.zeros(n_books, n_entries, device=codes.device)
    for book in range(n_books):
        mine = codes[:, book]
        counts[book] = torch.bincount(mine[mine >= 0], minlength=n_entries)
    return counts


def stale_rows(layer: TunableLayer, flips: Flips) -> torch.Tensor:
    """Share of each row's groups that flipped, (out,)."""
    return torch.bincount(flips.row, minlength=layer.codes.shape[0]) / layer.codes.shape[1]


class OptimizerReset:
    """Keep everything."""

    def after_flips(self, optimizer: Adam, student: Student, flips: Mapping[str, Flips]) -> None:
        """After codes changed."""

    def after_jump(self, optimizer: Adam) -> None:
        """With the first gradients of another trajectory at hand, before they are used."""


class SelectiveReset(OptimizerReset):
    """SeMI: the stale share of each entry."""

    def after_flips(self, optimizer: Adam, student: Student, flips: Mapping[str, Flips]) -> None:
        """Reset the moments of codewords and scales by the shares of their groups that flipped."""
        for name in optimizer.parameters:
            layers = {student.layers[path]: flips[path] for path in student.users_of_book(name) if path in flips}
            if any(len(one) for one in layers.values()):
                optimizer.forget(name, stale_codewords(layers))
        for path, one in flips.items():
            if len(one):
                optimizer.forget(f"{path}/log_scales", stale_rows(student.layers[path], one))

    def after_jump(self, optimizer: Adam) -> None:
        """Reset first moments that point against the new trajectory's gradient."""
        for name, parameter in optimizer.parameters.items():
            if parameter.grad is not None:
                optimizer.forget(name, (optimizer.direction(name) * parameter.grad < 0).float(), only_direction=True)


class FullReset(OptimizerReset):
    """Everything, whenever anything changed."""

    def after_flips(self, optimizer: Adam, student: Student, flips: Mapping[str, Flips]) -> None:
        """Reset everything if any code changed."""
        if any(len(one) for one in flips.values()):
            self.after_jump(optimizer)

    def after_jump(self, optimizer: Adam) -> None:
        """Reset everything."""
        for name in optimizer.parameters:
            optimizer.forget(name, 1.0)


OPTIMIZER_RESETS: dict[str, Callable[[], OptimizerReset]] = {"semi": SelectiveReset, "none": OptimizerReset, "full": FullReset}
