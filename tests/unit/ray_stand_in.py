"""A cluster within this process, as far as the engine talks to one: actors answer when they are waited for, and die when told to."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class RayError(Exception): ...


class RayTaskError(RayError): ...


class ActorDiedError(RayError): ...


class Ref:
    """An answer that is owed."""

    def __init__(self, actor: Actor, method: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.method, self.arguments = actor, method, arguments


class Actor:
    """Answers its calls one after the other."""

    def __init__(self, cluster: Cluster, kind: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.number, self.alive = len(cluster.hired), True
        self.owed: deque[Ref] = deque()
        self._cluster, self.of = cluster, kind(*arguments)

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Ref:
            ref = Ref(self, method, tuple(self._cluster.stored.get(id(one), one) for one in arguments))
            self.owed.append(ref)
            return ref

        return SimpleNamespace(remote=call)


class Cluster:
    """Stands where the module ``ray`` does.

    Parameters
    ----------
    cpus
        Of its one node.
    dies
        Asked before an actor answers: (actor's number, method, its arguments) -> whether it dies instead.
    order
        Which of the actors that owe something answers next.
    """

    def __init__(
        self, cpus: int = 2, dies: Callable[[int, str, tuple[Any, ...]], bool] = lambda *_: False,
        order: Callable[[list[Ref]], Ref] = lambda refs: refs[0],
    ) -> None:  # fmt: skip
        self.cpus, self.dies, self.order = cpus, dies, order
        self.hired: list[Actor] = []
        self.most_owed = 0
        self.stored: dict[int, Any] = {}
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self.cpus)}}]

    def put(self, value: Any) -> Any:
        copy = pickle.loads(pickle.dumps(value))  # what cannot travel fails here as it does there
        token = SimpleNamespace()
        self.stored[id(token)] = copy
        self._kept = [*getattr(self, "_kept", []), token]
        return token

    def remote(self, kind: Callable[..., Any]) -> Any:
        def hire(*arguments: Any) -> Actor:
            actor = Actor(self, kind, arguments)
            self.hired.append(actor)
            return actor

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=hire))

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        self.most_owed = max(self.most_owed, sum(ref.method == "run" for ref in refs))
        gone = [ref for ref in refs if not ref.actor.alive]
        if gone:
            return gone[:1], []
        due = [actor.owed[0] for actor in self.hired if actor.alive and actor.owed and actor.owed[0] in refs]
        return ([self.order(due)], []) if due else ([], refs)

    def get(self, ref: Ref) -> Any:
        if ref.actor.alive and self.dies(ref.actor.number, ref.method, ref.arguments):
            ref.actor.alive = False
        if not ref.actor.alive:
            raise ActorDiedError("The actor died.\nMore about it.")
        assert ref.actor.owed.popleft() is ref
        try:
            return pickle.loads(pickle.dumps(getattr(ref.actor.of, ref.method)(*ref.arguments)))
        except Exception as error:
            raise RayTaskError(f"Traceback of the worker\n{type(error).__name__}: {error}") from error

    def kill(self, actor: Actor, no_restart: bool) -> None:
        actor.alive = False

    def cancel(self, ref: Ref) -> None:
        ref.actor.owed.remove(ref)

    def shutdown(self) -> None:
        raise AssertionError("a cluster that others use is not ended")
