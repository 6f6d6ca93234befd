"""Counting what a computation allocates."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


class Allocations(TorchDispatchMode):
    """Bytes of new storage alive inside the block: `largest` single one, `peak` of all together."""

    def __enter__(self):
        self.largest = self.alive = self.peak = 0
        self.known = {}
        return super().__enter__()

    def _free(self, key, size):
        self.alive -= size
        del self.known[key]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            if id(storage) in old or id(storage) in self.known:
                continue
            size = storage.nbytes()
            self.known[id(storage)] = weakref.finalize(storage, self._free, id(storage), size)
            self.alive += size
            self.largest, self.peak = max(self.largest, size), max(self.peak, self.alive)
        return out
