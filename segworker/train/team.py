"""What a training worker knows of the others: its rank, averaged gradients, decisions that all take alike. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Team:
    """Workers that train one model together; alone where no process group is up."""

    def __init__(self) -> None:
        up = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if up else (0, 1)

    @property
    def leads(self) -> bool:
        """Whether this worker writes files."""
        return self.rank == 0

    def start_alike(self, modules: Iterable[nn.Module]) -> None:
        """Give all workers the weights of the first."""
        if self.size > 1:
            for module in modules:
                for value in module.state_dict().values():
                    dist.broadcast(value, 0)

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over the workers; a parameter without one counts as 0."""
        if self.size == 1:
            return
        chosen = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in chosen])
        dist.all_reduce(flat)
        for parameter, part in zip(chosen, flat.split([p.numel() for p in chosen]), strict=True):
            parameter.grad = (part / self.size).view_as(parameter)

    def any(self, flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - it is the whole message
        """Return whether the flag is set on any worker; all workers must ask."""
        if self.size == 1:
            return flag
        value: Tensor = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value > 0)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell figures to whoever listens; here nobody does."""
