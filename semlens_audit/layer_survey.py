"""What of a network can be audited: its layers in the order of execution, their components, what they cost, and a good choice.

Everything is read off one forward pass, so that it holds for networks from any library or own code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from semlens_audit.errors import SubjectError
from semlens_audit.layouts import Layout, first_tensor, grid_of, layout_of, prefix_tokens

__all__ = ["LayerCost", "Survey", "default_layers", "survey"]

_LEAST_SHARE = 0.02
"""Share of a forward pass's operations below which a stage is no stage: squeeze-and-excitation, heads."""
_TRUNK = 0.9
"""Share from which a module is not a part of the network but all of it."""
_WORKS_HERE, _NEARLY_ALL = 0.2, 0.95
"""Least shares of a block's operations at its own resolution, and at this and the next larger one together."""


@dataclass(frozen=True)
class LayerCost:
    """One layer, as the forward pass of a single input shows it.

    Parameters
    ----------
    name
        Of the sub-module.
    kind
        Name of its class.
    parent
        Name of the executed module that it runs in; empty at the top.
    layout
        Order of its output's axes, ``None`` where it cannot be audited.
    shape
        Of its output on one input, without the batch: (K, H, W), (T, K) or (K,), components and places in the canonical order;
        of what cannot be audited, as it is.
    components
        K, or ``None``.
    side
        Side of its grid of places; 1 of a vector, ``None`` where there is none.
    prefix
        Tokens before those of the grid.
    flops
        Floating point operations of matrix products and convolutions inside of it, on one input.
    before
        Those of the whole pass until its output is there.
    refusal
        Why it cannot be audited, or empty.
    own
        Those of `flops` that no module inside of it does.
    """

    name: str
    kind: str
    parent: str
    layout: Layout | None
    shape: tuple[int, ...]
    components: int | None
    side: int | None
    prefix: int
    flops: int
    before: int
    refusal: str = ""
    own: int = 0


@dataclass(frozen=True)
class Survey:
    """All layers of a network.

    Parameters
    ----------
    layers
        In the order in which their outputs are complete; a module that runs several times stands where it ran last.
    unused
        Sub-modules that the forward pass leaves out, containers aside.
    flops
        Of the whole forward pass on one input.
    size
        Side of the input, pixels.
    """

    layers: tuple[LayerCost, ...]
    unused: tuple[str, ...]
    flops: int
    size: int

    def share(self, operations: int) -> float:
        """`operations` as a share of the forward pass, 0 to 1."""
        return operations / self.flops if self.flops else 0.0


@dataclass
class _Run:
    """What a forward pass shows while it runs."""

    model: torch.nn.Module
    counter: FlopCounterMode
    names: dict[torch.nn.Module, str]
    stack: list[tuple[str, int, int]] = field(default_factory=list)
    found: dict[str, LayerCost] = field(default_factory=dict)
    batch: int = 1

    def enter(self, module: torch.nn.Module, _inputs: object) -> None:
        self.stack.append((self.names[module], self.counter.get_total_flops(), 0))

    def leave(self, module: torch.nn.Module, _inputs: object, output: object) -> None:
        name, started, inside = self.stack.pop()
        total = self.counter.get_total_flops()
        flops = total - started
        parent = ""
        if self.stack:
            parent, since, within = self.stack[-1]
            self.stack[-1] = (parent, since, within + flops)
        if not name:
            return
        before = self.found.pop(name, None)
        row = LayerCost(
            name=name, kind=_kind(module), parent=parent, layout=None, shape=(), components=None, side=None, prefix=0,
            flops=flops // self.batch + (before.flops if before else 0), before=total // self.batch,
            own=(flops - inside) // self.batch + (before.own if before else 0),
        )  # fmt: skip
        self.found[name] = self._shaped(row, output)

    def _shaped(self, row: LayerCost, output: object) -> LayerCost:
        try:
            tensor = first_tensor(output)
            layout = layout_of(self.model, row.name, tensor, self.batch)
        except SubjectError as error:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
            return replace(row, shape=shape, refusal=error.problems[0].message)
        shape = tuple(layout.canonical(tensor).shape)[1:]
        if layout is Layout.VECTOR:
            return replace(row, layout=layout, shape=shape, components=shape[0], side=1)
        if len(shape) == 3:
            return replace(row, layout=layout, shape=shape, components=shape[0], side=shape[1])
        grid = grid_of(shape[0], prefix_tokens(self.model))
        if grid is None:
            return replace(row, shape=shape, refusal=f"its {shape[0]} tokens form no square grid")
        return replace(row, layout=layout, shape=shape, components=shape[1], side=grid[1], prefix=grid[0])


def survey(model: torch.nn.Module, size: int) -> Survey:
    """Run the network once on grey images and note every layer.

    Parameters
    ----------
    model
        In eval mode.
    size
        Side of the square input, pixels.
    """
    counter = FlopCounterMode(display=False)
    names: dict[torch.nn.Module, str] = {}
    for name, module in model.named_modules():
        names.setdefault(module, name)
    run = _Run(model, counter, names, batch=2)  # with two, what works on pieces of the input is told from what does not
    handles: list[Any] = []
    for module in names:
        handles.append(module.register_forward_pre_hook(run.enter))
        handles.append(module.register_forward_hook(run.leave))
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would run transformer layers without their sub-modules
    try:
        with torch.no_grad(), counter:
            model(torch.zeros((run.batch, 3, size, size), device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    leaves = [name for module, name in names.items() if name and not list(module.children())]
    unused = tuple(sorted(name for name in leaves if name not in run.found and any(True for _ in model.get_submodule(name).parameters())))
    return Survey(tuple(run.found.values()), unused, counter.get_total_flops() // run.batch, size)


def _kind(module: torch.nn.Module) -> str:
    name = type(module).__name__
    return "exported" if name == "InterpreterModule" else name


_UNITS = frozenset({"GELU", "GELUTanh", "QuickGELU", "ReLU", "ReLU6", "LeakyReLU", "SiLU", "Mish", "ELU", "Hardswish", "SquaredReLU"})


def default_layers(found: Survey) -> tuple[str, ...]:
    """The layers that an audit does well to begin with: what the last two stages give, or the last two blocks.

    A stage is what a network computes at one resolution. Of each of the last two resolutions before pooling, the outermost block
    that does most of its operations there and ends last is taken; where there are no blocks, as in VGG, the last operation there.
    Networks of one resolution, such as vision transformers, consist of equal blocks, of which the last two are taken.

    Of a block with attention, and of any in a network of one resolution, the non-linearity of its last perceptron is meant rather than
    its output: that is the residual stream, which has no axes of its own, and whose activation x gradient adds up to nothing before a
    layer norm.

    Returns
    -------
    tuple of str
        At most two names, in the order of execution; empty where the network has no such structure.
    """
    chosen, equal = _stages(found)
    parents = {row.name: row.parent for row in found.layers}
    result = []
    for name in chosen:
        inside = [row for row in found.layers if name in _ancestors(row.name, parents)]
        stream = equal or any("attention" in row.kind.lower() for row in inside)
        units = [row.name for row in inside if row.kind in _UNITS and row.layout is not None] if stream else []
        result.append(units[-1] if units else name)
    return tuple(result)


def _stages(found: Survey) -> tuple[tuple[str, ...], bool]:
    """The last two stages, or the last two of equal blocks; and whether they are the latter."""
    sides = {row.name: row.side for row in found.layers}
    parents = {row.name: row.parent for row in found.layers}
    there: dict[str, dict[int | None, int]] = defaultdict(lambda: defaultdict(int))
    inner: dict[str, int] = defaultdict(int)
    for row in found.layers:
        at: str = row.name
        while at:
            there[at][row.side] += row.own
            inner[at] += row.own if at != row.name else 0
            at = parents.get(at, "")
    work: dict[int, int] = defaultdict(int)
    for row in found.layers:
        if row.side is not None and row.layout is not Layout.VECTOR:
            work[row.side] += row.own
    stages = [side for side in sorted(work, reverse=True) if found.share(work[side]) >= _LEAST_SHARE]
    if len(stages) < 2 or _isotropic(found, stages, work):
        return _last_blocks(found, inner), True
    chosen: list[str] = []
    for side in reversed(stages):
        larger = next((other for other in reversed(stages) if other > side), None)
        fits = [row for row in found.layers if _belongs(row, side, larger, there[row.name])]
        fits = [row for row in fits if found.share(row.flops) < _TRUNK] or fits
        names = {row.name for row in fits}
        outermost = [row for row in fits if not _ancestors(row.name, parents) & names]
        blocks = [row for row in outermost if inner[row.name]]
        rest = [row for row in outermost if "pool" not in row.kind.lower() and side > 1]
        if (blocks or rest) and len(chosen) < 2:
            # Least deep: not the first part of a block that goes on at the next resolution.
            depth = min(len(_ancestors(row.name, parents)) for row in blocks or rest)
            chosen.append([row.name for row in blocks or rest if len(_ancestors(row.name, parents)) == depth][-1])
    order = list(sides)
    return tuple(sorted(chosen, key=order.index)), False


def _belongs(row: LayerCost, side: int, larger: int | None, work: dict[int | None, int]) -> bool:
    """Whether a layer gives that resolution and works at it, but for what it does before it halves the one that it is given.

    What works inside of a block at less (attention on windows or on fewer keys, squeeze and excitation) counts with it.
    """
    if row.side != side or row.layout in (None, Layout.VECTOR):
        return False
    total = sum(work.values())
    here = sum(done for other, done in work.items() if other is None or other <= side)
    before = work.get(larger, 0) if larger is not None else 0
    return total == 0 or (here >= _WORKS_HERE * total and here + before >= _NEARLY_ALL * total)


def _ancestors(name: str, parents: dict[str, str]) -> set[str]:
    found = set()
    while name := parents.get(name, ""):
        found.add(name)
    return found


def _isotropic(found: Survey, stages: Sequence[int], work: dict[int, int]) -> bool:
    """Whether one resolution does nearly everything, as in a vision transformer whose patches are cut by a convolution."""
    return max(work[side] for side in stages) >= 0.9 * sum(work.values()) and any(
        row.layout in (Layout.TOKENS, Layout.TOKENS_FIRST) for row in found.layers
    )


def _last_blocks(found: Survey, inner: dict[str, int]) -> tuple[str, ...]:
    """The last two of the largest group of equal blocks."""
    groups: dict[tuple[str, tuple[int, ...]], list[LayerCost]] = defaultdict(list)
    for row in found.layers:
        if row.layout is not None and inner[row.name] and row.name.rpartition(".")[2].strip("_")[-1:].isdigit():
            groups[row.name.rpartition(".")[0], row.shape].append(row)
    repeated = [rows for rows in groups.values() if len(rows) > 1]
    if not repeated:
        return ()
    best = max(repeated, key=lambda rows: (sum(row.flops for row in rows), -rows[0].name.count(".")))
    return tuple(row.name for row in best[-2:])
