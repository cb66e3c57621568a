"""Mixtures of two Gaussians in one dimension, fitted in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.tensor_struct import TensorStruct


@dataclass(frozen=True, kw_only=True)
class Mixture(TensorStruct):
    """N mixtures: ``weights``, ``means``, ``variances`` (2, N) float64; ``iterations`` (N,) int64
    that each was fitted for.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    iterations: Tensor

    def log_joint(self, values: Tensor) -> Tensor:
        """(2, M, N) logarithms of weight times density of ``values`` (M, N), by component."""
        mean, variance = self.means[:, None], self.variances[:, None]
        exponent = (values - mean).square() / variance + variance.log() + math.log(2 * math.pi)
        return self.weights[:, None].log() - exponent / 2


@dataclass(frozen=True, kw_only=True)
class MixtureFit:
    """Expectation maximisation as in scikit-learn's ``GaussianMixture`` (diagonal covariance).

    Component 0 starts at the smallest value and component 1 at the largest, with variance 1 and
    equal weights. A fit stops after the first step that changes the mean log-likelihood by less
    than ``tolerance``, or after ``iterations``. ``floor`` is added to every variance.
    """

    tolerance: float = 1e-3
    iterations: int = 100
    floor: float = 1e-6

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Mixture:
        """Fit the N columns of ``values`` (M, N); each ascends and ends in infinities where it has
        fewer than M. The result for a column without values is meaningless.

        All iterations run for all columns, and converged ones are frozen, so that the host never
        waits for the device. In float64, since a variance is a small difference of squares.
        """
        valid = values.isfinite()
        count = valid.sum(dim=0).clamp(min=1)
        values = values.double().masked_fill(~valid, 0)
        last = values.gather(0, count[None] - 1)[0]
        means = torch.stack([values[0], last])
        state = Mixture(
            weights=torch.full_like(means, 0.5),
            means=means,
            variances=torch.ones_like(means),
            iterations=torch.zeros_like(count),
        )
        likelihood = torch.full_like(last, -torch.inf)
        active = torch.ones_like(count, dtype=torch.bool)
        for _ in range(self.iterations):
            better, found = self._step(state, values, valid, count)
            state = Mixture(
                weights=torch.where(active, better.weights, state.weights),
                means=torch.where(active, better.means, state.means),
                variances=torch.where(active, better.variances, state.variances),
                iterations=state.iterations + active,
            )
            active = active & ~((found - likelihood).abs() < self.tolerance)
            likelihood = found
        return state

    def _step(
        self, state: Mixture, values: Tensor, valid: Tensor, count: Tensor
    ) -> tuple[Mixture, Tensor]:
        """The next parameters, and the mean log-likelihood (N,) under the present ones."""
        joint = state.log_joint(values)
        total = joint.logsumexp(dim=0)
        share = (joint - total).exp() * valid
        mass = share.sum(dim=1) + 10 * torch.finfo(values.dtype).eps
        means = (share * values).sum(dim=1) / mass
        squares = (share * values.square()).sum(dim=1) / mass
        better = Mixture(
            weights=mass / count,
            means=means,
            variances=squares - means.square() + self.floor,
            iterations=state.iterations,
        )
        return better, (total * valid).sum(dim=0) / count
