"""How many bytes of tensors are alive, on any device."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive(TorchDispatchMode):
    """Bytes of what was allocated inside and is still there (`now`), and the most of it at once (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[Any, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        held = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage(), held)
        return out

    def add(self, storage: torch.UntypedStorage, held: set[int]) -> None:
        """Count a storage that is new until it goes; a view's is its argument's."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or key in held:
            return

        def gone(_: object) -> None:
            self.now -= self.seen.pop(key)[1]

        self.seen[key] = weakref.ref(storage, gone), size
        self.now += size
        self.peak = max(self.peak, self.now)
