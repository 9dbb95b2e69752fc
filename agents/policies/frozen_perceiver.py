"""One frozen Perceiver a process and device, out of reach of everything SB3 does to a policy's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.context_encoder import frozen_model


class WrongPerceiver(RuntimeError, ValueError):
    """A policy met another Perceiver than it was trained with.

    A RuntimeError too, since SB3's `load` passes those on and replaces some ValueErrors by errors of its own.
    """


def check_fingerprint(found: str | None, expected: str | None, what: str) -> None:
    """Raises WrongPerceiver unless `found` is the fingerprint that `what` was trained with."""
    if found != expected:
        raise WrongPerceiver(
            f"{what} was trained with the model of fingerprint {expected}, got fingerprint {found}, "
            "whose features mean something else; give the checkpoint it was trained with"
        )


_shared: WeakValueDictionary[tuple[str, str], CausalPerceiverIO] = WeakValueDictionary()


class FrozenPerceiver:
    """A handle on the shared copy. Not an `nn.Module`, so that no module that holds it sees its weights.

    Copies of the handle share the model. Pickled, it stores where the model came from and its fingerprint,
    and weights only where it was made from a model object.

    Args:
        source: a bundled name, directory or "hf://owner/name", or a model, which is copied and itself left alone.
    """

    def __init__(self, source: str | CausalPerceiverIO) -> None:
        cpu = torch.device("cpu")
        frozen = frozen_model(source, cpu)
        self.fingerprint: str = frozen.fingerprint
        self._name = source if isinstance(source, str) else None
        self._on_cpu = _shared.setdefault((self.fingerprint, str(cpu)), frozen)
        self._elsewhere: CausalPerceiverIO | None = None

    def on(self, device: torch.device) -> CausalPerceiverIO:
        """The model in eval mode on `device`."""
        if device.type == "cpu":
            return self._on_cpu
        key = (self.fingerprint, str(device))
        self._elsewhere = _shared.get(key)
        if self._elsewhere is None:
            self._elsewhere = _shared[key] = frozen_model(self._on_cpu, device)
        return self._elsewhere

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPerceiver:
        return self

    def __reduce__(self) -> tuple[Callable[..., FrozenPerceiver], tuple[str | CausalPerceiverIO, str]]:
        return _restore, (self._name if self._name is not None else self._on_cpu, self.fingerprint)


def _restore(source: str | CausalPerceiverIO, fingerprint: str) -> FrozenPerceiver:
    handle = FrozenPerceiver(source)
    check_fingerprint(handle.fingerprint, fingerprint, "the pickled extractor")
    return handle
