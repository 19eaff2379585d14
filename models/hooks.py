"""Functions around the forward passes of a model's modules, put on and taken off again.

All have the same arguments, so that one function serves modules that are called by position and by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# (module, args, kwargs) → None, or (args, kwargs) to go on with
Before = Callable[[Any, tuple[Any, ...], dict[str, Any]], "tuple[tuple[Any, ...], dict[str, Any]] | None"]
# (module, args, kwargs, output) → None, or the output to go on with
After = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]


def add_hooks(
    root: nn.Module, *, before: Mapping[str, Before] | None = None, after: Mapping[str, After] | None = None, prepend: bool = False
) -> list[RemovableHandle]:
    """Put hooks on modules of `root`, to stay. Returns what removes them.

    Args:
        before, after: a hook for each module, by its path; "" is `root` itself.
        prepend: whether they run before the hooks that a module has already.

    Raises:
        AttributeError: for a path that names no module; no hook is added then.
    """
    # All modules are looked up first: a path that leads nowhere leaves no hook behind.
    befores = [(root.get_submodule(path), hook) for path, hook in (before or {}).items()]
    afters = [(root.get_submodule(path), hook) for path, hook in (after or {}).items()]
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True, prepend=prepend) for module, hook in befores]
    return handles + [module.register_forward_hook(hook, with_kwargs=True, prepend=prepend) for module, hook in afters]


@contextmanager
def hooking(
    root: nn.Module, *, before: Mapping[str, Before] | None = None, after: Mapping[str, After] | None = None, prepend: bool = False
) -> Iterator[None]:
    """Run the block with hooks on modules of `root`, as `add_hooks` puts them on; they go also when the block fails.

    Example:
        >>> layer, shapes = nn.Linear(2, 3), []
        >>> with hooking(layer, after={"": lambda module, args, kwargs, output: shapes.append(tuple(output.shape))}):
        ...     _ = layer(torch.zeros(4, 2))
        >>> shapes
        [(4, 3)]
    """
    handles = add_hooks(root, before=before, after=after, prepend=prepend)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The input of a Linear or Conv module, however it was passed."""
    value: torch.Tensor = args[0] if args else kwargs["input"]
    return value
