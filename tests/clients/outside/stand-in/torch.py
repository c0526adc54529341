"""Stands in for torch, of which guidellm uses only what hands rows of a file to it, one after another."""

import sys
import types
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Generator:
    def manual_seed(self, _seed):
        return self


class Tensor:
    """Named by the check of a type; there is none."""


class IterableDataset(Generic[Row]):
    pass


class DataLoader(Generic[Row]):
    def __init__(self, dataset, **_shape):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset)


def module(name, **names):
    sys.modules[name] = made = types.ModuleType(name)
    vars(made).update(names)
    return made


nn = module("torch.nn", Module=type("Module", (), {}))
data = module("torch.utils.data", get_worker_info=lambda: None)
data.dataset = module("torch.utils.data.dataset", IterableDataset=IterableDataset)
data.dataloader = module("torch.utils.data.dataloader", DataLoader=DataLoader)
utils = module("torch.utils", data=data)
