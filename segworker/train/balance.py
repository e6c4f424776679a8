"""How the losses of several tasks are weighted against each other: by numbers, or by learnt uncertainties.

Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses" (CVPR 2018, arXiv:1705.07115): L
counts as exp(-s) L + s / 2, where s, the logarithm of the task's variance, is learnt with the network's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from segworker.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BalanceConfig:
    """How loss terms become one number."""

    mode: Literal["fixed", "uncertainty"] = "fixed"
    alphas: tuple[tuple[str, float], ...] = ()
    "(term, factor), with or without 'loss_' in front; terms that are not named have 1."

    def __post_init__(self) -> None:
        if self.mode not in ("fixed", "uncertainty"):
            raise ConfigError(f"losses are weighted by 'fixed' numbers or by 'uncertainty', got {self.mode!r}")
        negative = [name for name, alpha in self.alphas if not alpha >= 0]
        if negative:
            raise ConfigError(f"a loss has a weight of at least 0, got a negative one for {negative[0]}; correct it")

    @property
    def is_plain(self) -> bool:
        """Whether the terms are simply added."""
        return self.mode == "fixed" and not self.alphas


def short(name: str) -> str:
    """Return a term's name without 'loss_'."""
    return name.removeprefix("loss_")


class LossBalance(nn.Module):
    """Weights terms; in 'uncertainty' mode its parameters are to be trained too, without weight decay."""

    def __init__(self, config: BalanceConfig, names: Sequence[str] = ()) -> None:
        """Prepare.

        Args:
            config: how.
            names: all terms of the model's loss; not needed where the terms are simply added.

        Raises:
            ConfigError: a weight for a term that the model does not have.
        """
        super().__init__()
        self.config = config
        known = {short(name) for name in names}
        self.alphas = {short(name): alpha for name, alpha in config.alphas}
        unknown = sorted(set(self.alphas) - known)
        if unknown:
            raise ConfigError(
                f"--alpha names terms of the model's loss, got {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )
        learnt = sorted(known) if config.mode == "uncertainty" else []
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in learnt})

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms as they are added up."""
        result = {}
        for name, value in losses.items():
            weighted = value * self.alphas.get(short(name), 1.0)
            if short(name) in self.log_variances:
                s = self.log_variances[short(name)]
                weighted = torch.exp(-s) * weighted + s / 2
            result[name] = weighted
        return result

    def weights(self) -> dict[str, float]:
        """Return the present factor of each term that has one other than 1, by short name."""
        found = dict(self.alphas)
        for name, s in self.log_variances.items():
            found[name] = found.get(name, 1.0) * float(torch.exp(-s.detach()))
        return found
