"""Training a TopK sparse autoencoder on a layer's activations (Gao et al. 2024, arXiv 2406.04093), deterministic and resumable.

The order of vectors follows from the seed, the samples and the settings alone: images are put in a random order, the vectors of as many of
them as fit into the buffer are shuffled, and cut into batches. Where training was interrupted it goes on with the same vectors, and ends
with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from semlens_audit import __version__
from semlens_audit.devices import describe
from semlens_audit.digest import digest
from semlens_audit.errors import DataError, ExecutionError, UsageError
from semlens_audit.memory import Limit
from semlens_audit.plan import AuditPlan
from semlens_audit.sae.activations import Activations, aligned
from semlens_audit.sae.checkpoint import Checkpoints, write_dictionary
from semlens_audit.sae.model import SparseAutoencoder, topk_latents
from semlens_audit.sae.order import Buffers, Order
from semlens_audit.sae_header import Places, Training
from semlens_audit.thread_count import shared_among

if TYPE_CHECKING:
    from semlens_audit.work import Bench

__all__ = ["Settings", "Status", "bare", "train"]

_HELD_BACK, _MOST_HELD_BACK = 0.1, 2000
"""Share of the images that are held back, and the most of them."""
_FEWEST = 10
"""Images without which there is nothing to train on and to judge by."""
_AUXILIARY = 1 / 32
"""Weight of the auxiliary loss (Gao et al., section 2.4)."""
_IDLE = 200
"""Steps without being active once after which a latent counts as dead and is trained on what the others leave over."""
_DECAY = 0.2
"""Share of the steps, at the end, in which the learning rate falls to zero."""
_EVERY = 25
"""Steps between two judgements on vectors held back."""
_JUDGED = 4096
"""Vectors held back that a judgement along the way looks at, at most."""
_ROWS = 8192
"""Vectors that are encoded together in the final judgement."""


@dataclass(frozen=True)
class Settings:
    """How an autoencoder is trained.

    Parameters
    ----------
    layer
        Name of the layer.
    latents
        F.
    k
        Latents that are active at most.
    steps, epochs
        Exactly one of them: optimiser steps, or passes over the training vectors.
    places
        Which of the layer's vectors it reads.
    batch
        Vectors in each step.
    learning_rate
        ``None``: 2e-4 times the square root of 2^14 / F, as Gao et al. scale it.
    seed
        Of the decoder's first directions, of the images held back, and of the order.
    """

    layer: str
    latents: int
    k: int
    steps: int | None = None
    epochs: int | None = None
    places: Places = "all"
    batch: int = 1024
    learning_rate: float | None = None
    seed: int = 0

    @property
    def rate(self) -> float:
        """Learning rate that the training begins with."""
        return self.learning_rate if self.learning_rate is not None else float(2e-4 * (2**14 / self.latents) ** 0.5)


@dataclass(frozen=True)
class Status:
    """Where a training stands.

    Parameters
    ----------
    step, steps
        Steps done, and steps in all.
    loss
        Of the last batch: mean squared error over variance, auxiliary loss not counted.
    explained_variance
        On vectors held back.
    dead
        Latents that were not active in any of the last `_IDLE` steps.
    """

    step: int
    steps: int
    loss: float
    explained_variance: float
    dead: int


class _Run:
    """One training: its data, its autoencoder, its optimiser."""

    def __init__(self, bench: Bench, settings: Settings) -> None:
        self.bench, self.settings, self.device = bench, settings, bench.device
        self.activations = Activations(bench, settings.layer, settings.places)
        self.training, self.held_back = _divided(bench, settings.seed)
        self.order = Order(self.training, self.activations.count, self.activations.width, settings.batch, settings.seed)
        self.steps = settings.steps if settings.steps is not None else (settings.epochs or 1) * self.order.epoch_steps
        self.step, self.loss = 0, float("nan")
        self.threads = torch.get_num_threads() if bench.device.type == "cpu" else None
        """Threads that operations are shared among: last bits of sums depend on their number."""
        self.whole = True
        """Whether no step is half done."""
        if settings.k > settings.latents:
            raise UsageError("too-large-k", f"{settings.k} of {settings.latents} latents cannot be active.", "Lower --k.")

    @cached_property
    def key(self) -> str:
        """Digest of all that the result depends on; steps of an interrupted training are taken up under the same one only."""
        subject = self.bench.subject
        return digest(
            {
                **asdict(self.settings),
                "learning_rate": self.settings.rate,
                "steps": self.steps,
                "subject": subject.sha256,
                "preprocessing": subject.preprocessing.model_dump(mode="json"),
                "data": self.bench.data.sha256,
                "rows": self.bench.plan.audit.measurement.batch_size,
                "device": describe(self.device),
            }
        )

    @cached_property
    def judged(self) -> torch.Tensor:
        """(n, d) some of the vectors held back, for judgements along the way."""
        images = self.held_back[: max(1, -(-_JUDGED // self.activations.count))]
        vectors = self.activations(images).reshape(-1, self.activations.width)
        chosen = np.random.default_rng([self.settings.seed, 3]).permutation(len(vectors))[:_JUDGED]
        return aligned(vectors[np.sort(chosen)]).to(self.device)

    def begin(self) -> None:
        """First parameters, from the first buffer: unit directions at random, the encoder their transpose, b_dec the mean vector."""
        width, latents = self.activations.width, self.settings.latents
        vectors = self.activations(self.order.buffer(0, 0)).reshape(-1, width).astype(np.float64)
        scale = float(np.float32(np.linalg.norm(vectors, axis=1).mean()))  # as the file keeps it
        if not scale > 0 or not vectors.var(axis=0).sum() > 0:
            raise DataError(
                "constant-layer", f"Layer {self.settings.layer!r} gives the same on all data: there is nothing to learn.",
                "Name another layer.",
            )  # fmt: skip
        directions = torch.randn(latents, width, generator=torch.Generator().manual_seed(self.settings.seed))
        directions /= directions.norm(dim=1, keepdim=True)
        mean = aligned((vectors.mean(axis=0) / scale).astype(np.float32))
        model = SparseAutoencoder(directions.T.clone(), directions, torch.zeros(latents), mean, self.settings.k, scale)
        self._start(model, torch.zeros(latents, dtype=torch.int64), float((vectors / scale).var(axis=0).sum() / width))

    def _start(self, model: SparseAutoencoder, idle: torch.Tensor, variance: float) -> None:
        self.model = model.to(self.device)
        # b_enc stays zero: the autoencoder of the paper has none.
        self.parameters = {name: value for name, value in self.model.named_parameters() if name != "b_enc"}
        self.optimiser = torch.optim.Adam(self.parameters.values(), lr=self.settings.rate, eps=6.25e-10, foreach=False)
        self.idle, self.variance = idle.to(self.device), variance

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint holds: tensors, and numbers."""
        tensors = {**self.model.tensors(), "idle": self.idle.cpu()}
        for name, value in self.parameters.items():
            tensors.update({f"{name}.{kind}": part.detach().cpu().contiguous() for kind, part in self.optimiser.state[value].items()})
        numbers = {"step": self.step, "variance": self.variance, "scale": self.model.scale, "loss": self.loss}
        return tensors, {**numbers, "threads": self.threads}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        tensors = {name: value.clone() for name, value in tensors.items()}  # a file's lie wherever they happen to, see `aligned`
        model = SparseAutoencoder(
            tensors["W_enc"], tensors["W_dec"], tensors["b_enc"], tensors["b_dec"], self.settings.k, numbers["scale"]
        )
        self._start(model, tensors["idle"], numbers["variance"])
        for name, value in self.parameters.items():
            kept = {kind: tensors[f"{name}.{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
            self.optimiser.state[value] = {
                kind: part.to(self.device) if kind != "step" else part for kind, part in kept.items()
            }
        self.step, self.loss, self.threads = numbers["step"], numbers["loss"], numbers["threads"]

    def advance(self, vectors: torch.Tensor) -> None:
        """One step on (n, d) vectors.

        Raises
        ------
        ExecutionError
            ``training-diverged``: the loss is no finite number; the step is not taken.
        """
        model = self.model
        scaled = vectors.to(self.device) / model.scale
        pre = (scaled - model.b_dec) @ model.W_enc + model.b_enc
        latents = topk_latents(pre, model.k)
        error = scaled - (latents @ model.W_dec + model.b_dec)
        loss = error.square().mean() / self.variance
        total = loss
        dead = self.idle >= _IDLE
        if bool(dead.any()):
            total = loss + _AUXILIARY * self._auxiliary(pre, error.detach(), dead)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        value = float(total.detach())
        gradients = [one.grad for one in self.parameters.values() if one.grad is not None]
        if not np.isfinite(value) or not all(bool(torch.isfinite(one).all()) for one in gradients):
            raise ExecutionError(
                "training-diverged", f"In step {self.step + 1} the loss is no finite number.",
                f"Train with a lower --learning-rate than {self.settings.rate:.3g}, and another --out; the last good state is kept.",
            )  # fmt: skip
        self.whole = False
        with torch.no_grad():
            directions = model.W_dec
            if directions.grad is not None:
                # Along its direction a unit vector cannot move: that part of the gradient would only disturb Adam (appendix A.1).
                directions.grad -= (directions.grad * directions).sum(dim=1, keepdim=True) * directions
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.rate * min(1.0, (self.steps - self.step) / max(1.0, _DECAY * self.steps))
            self.optimiser.step()
            directions.div_(directions.norm(dim=1, keepdim=True).clamp(min=1e-12))
            self.idle += 1
            self.idle[(latents.detach() > 0).any(dim=0)] = 0
        self.step, self.loss = self.step + 1, float(loss.detach())
        self.whole = True

    def _auxiliary(self, pre: torch.Tensor, error: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
        """AuxK (section 2.4): what dead latents, the most promising of them, make of what the others left over."""
        chosen = dead.nonzero()[:, 0]
        few = min(len(chosen), max(self.model.k, self.activations.width // 2))
        tried = topk_latents(pre[:, chosen], few) @ self.model.W_dec[chosen]
        return (error - tried).square().mean() / error.square().mean().clamp(min=1e-12)

    def status(self) -> Status:
        """How it does on vectors held back."""
        with torch.no_grad():
            judge = _Judge(self.judged.mean(dim=0).double().cpu())
            judge.add(self.judged, self.model)
        return Status(self.step, self.steps, self.loss, judge.explained_variance, int((self.idle >= _IDLE).sum()))

    def judge(self) -> tuple[float, float, int]:
        """Explained variance and mean number of active latents on all vectors held back, and latents dead on all vectors."""
        with torch.no_grad():
            mean, rows = torch.zeros(self.activations.width, dtype=torch.float64), 0
            for part in self._parts(self.held_back):
                mean += part.double().sum(dim=0)
                rows += len(part)
            judge = _Judge(mean / rows)
            for part in self._parts(self.held_back):
                judge.add(part.to(self.device), self.model)
            alive = judge.alive.clone()
            for part in self._parts(self.training):
                alive |= (self.model.encode(part.to(self.device)) > 0).any(dim=0).cpu()
        return judge.explained_variance, judge.active / judge.rows, int((~alive).sum())

    def _parts(self, samples: np.ndarray) -> Iterator[torch.Tensor]:
        each = max(1, _ROWS // self.activations.count)
        for start in range(0, len(samples), each):
            vectors = self.activations(samples[start : start + each]).reshape(-1, self.activations.width)
            for first in range(0, len(vectors), _ROWS):
                yield aligned(vectors[first : first + _ROWS])


class _Judge:
    """Fraction of variance unexplained, summed up in double precision.

    Parameters
    ----------
    mean
        (d,) float64 mean of all vectors that are going to be added.
    """

    def __init__(self, mean: torch.Tensor) -> None:
        self._mean = mean
        self._left, self._all = 0.0, 0.0
        self.active, self.rows = 0.0, 0
        self.alive: torch.Tensor = torch.zeros(0, dtype=torch.bool)

    def add(self, vectors: torch.Tensor, model: SparseAutoencoder) -> None:
        """(n, d) vectors."""
        latents = model.encode(vectors)
        self._left += float((vectors - model.decode(latents)).double().square().sum())
        self._all += float((vectors.double().cpu() - self._mean).square().sum())
        above = latents > 0
        self.active += float(above.sum())
        self.rows += len(vectors)
        fired = above.any(dim=0).cpu()
        self.alive = fired if not len(self.alive) else self.alive | fired

    @property
    def explained_variance(self) -> float:
        """1 - FVU; 0 where nothing varies."""
        return 1.0 - self._left / self._all if self._all > 0 else 0.0


def bare(plan: AuditPlan) -> AuditPlan:
    """The plan without layers and autoencoders: an autoencoder may be named in it before there is one."""
    audit = plan.audit
    subject = audit.subject.model_copy(update={"autoencoders": ()})
    sensitivity = audit.sensitivity.model_copy(update={"layers": ()})
    return plan.model_copy(update={"audit": audit.model_copy(update={"subject": subject, "layers": (), "sensitivity": sensitivity})})


def _divided(bench: Bench, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the images to train on and of those held back; images that belong together are on the same side."""
    count = len(bench.data.samples)
    units = np.arange(count) if bench.data.groups is None else np.asarray(bench.data.groups)
    names = np.unique(units)
    if count < _FEWEST or len(names) < 2:
        raise DataError("too-few-samples", f"{count} images in {len(names)} groups are too few to train on.", f"Give {_FEWEST} at least.")
    wanted = min(_MOST_HELD_BACK, max(1, round(_HELD_BACK * count)))
    chosen = np.random.default_rng([seed, 0]).permutation(names)
    sizes = np.cumsum([np.count_nonzero(units == name) for name in chosen])
    back = np.isin(units, chosen[: min(int(np.searchsorted(sizes, wanted)) + 1, len(names) - 1)])
    return np.flatnonzero(~back), np.flatnonzero(back)


def train(
    bench: Bench,
    settings: Settings,
    out: Path,
    report: Callable[[Status], None] = lambda _status: None,
    *,
    force: bool = False,
    every: float = 10.0,
) -> Training:
    """Train an autoencoder and write its file; interrupted or killed at any moment, the next call goes on where it was.

    Parameters
    ----------
    bench
        The audit without autoencoders, its data and its network, see `bare`.
    settings
        How.
    out
        File to write. Beside it lies ``OUT.partial`` until it is finished: the last state, written every so often.
    report
        Called every few steps, and at the end.
    force
        Whether what another training has left there is replaced.
    every
        Seconds between two checkpoints; they decide what is lost by an interruption, and nothing else.

    Returns
    -------
    Training
        What the file says.

    Raises
    ------
    ExecutionError
        ``training-diverged``, ``not-finite``, ``memory-exceeded``.
    UsageError
        ``other-training``: `out` holds, or its ``.partial`` is a state of, another training; ``too-large-k``.
    DataError
        ``too-few-samples``, ``constant-layer``.
    """
    limit, run = Limit(bench.execution.max_memory), _Run(bench, settings)
    checkpoints = Checkpoints(out, run.key, every, force=force)
    finished = checkpoints.finished()
    if finished is not None:
        return finished
    kept = checkpoints.load()
    if kept is None:
        run.begin()
    else:
        run.restore(*kept)
    buffers = Buffers(run.activations, run.order)
    with shared_among(run.threads):
        try:
            for epoch, number, positions in run.order.steps(run.step, run.steps):
                run.advance(buffers(epoch, number, positions))
                if run.step % _EVERY == 0 or run.step == run.steps:
                    limit.require("Training")
                    report(run.status())
                checkpoints.keep(run.state)
        except BaseException:
            if run.step and run.whole:  # of a step that an interrupt cut in two nothing is kept
                checkpoints.save(*run.state())
            raise
        explained, active, dead = run.judge()
    training = Training(
        layer=settings.layer, k=settings.k, places=settings.places, subject=bench.subject.sha256,
        preprocessing=bench.subject.preprocessing, data=bench.data.sha256, samples=len(run.training), held_back=len(run.held_back),
        steps=run.steps, batch=settings.batch, learning_rate=settings.rate, seed=settings.seed, explained_variance=explained,
        active=active, dead=dead, device=describe(bench.device), tool=__version__, key=run.key,
    )  # fmt: skip
    write_dictionary(out, run.model, training)
    checkpoints.drop()
    return training
