"""Training of `engine_tiny_task`'s network in plain NumPy: an independent word on every formula.

float64 throughout: gradients by hand, L2 or decoupled weight decay, clipping in two stages, SGD
with momentum, Adam, moving averages.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

KERNELS = ("hidden/kernel", "out/kernel")


def loss_and_gradients(
    weights: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> tuple[float, dict[str, np.ndarray]]:
    """Returns the weighted mean of squared errors and its gradient by every weight."""
    x, y, w = (np.asarray(batch[name], np.float64) for name in ("x", "y", "weight"))
    hidden = np.tanh(x @ weights["hidden/kernel"] + weights["hidden/bias"])
    errors = hidden @ weights["out/kernel"] + weights["out/bias"] - y
    loss = float((w * np.square(errors).sum(axis=1)).sum() / w.sum())
    by_output = 2.0 * errors * (w / w.sum())[:, None]
    by_hidden = by_output @ weights["out/kernel"].T * (1.0 - np.square(hidden))
    return loss, {
        "hidden/kernel": x.T @ by_hidden,
        "hidden/bias": by_hidden.sum(axis=0),
        "out/kernel": hidden.T @ by_output,
        "out/bias": by_output.sum(axis=0),
    }


class NumpyTrainer:
    """Weights, buffers and one update at a time.

    Args:
      weights: name -> initial value.
      optimizer: 'sgd' or 'adamw'.
      weight_decay: on kernels.
      clip: limit of each norm, then of the global norm; 0: none.
      momentum: of SGD, beta 1 of Adam.
      follows_rate: whether the rate multiplies SGD's momentum (PyTorch), not its gradients (Keras).
      beta2, epsilon: of Adam.
      average_decay: of the moving averages.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        *,
        optimizer: str,
        weight_decay: float,
        clip: float,
        momentum: float,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        average_decay: float = 0.99,
        follows_rate: bool = False,
    ):
        self.weights = {name: np.array(value, np.float64) for name, value in weights.items()}
        self.first = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.second = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.averages = {name: value.copy() for name, value in self.weights.items()}
        self._optimizer, self._decay, self._clip = optimizer, weight_decay, clip
        self._beta1, self._beta2, self._epsilon = momentum, beta2, epsilon
        self._average_decay, self._follows_rate = average_decay, follows_rate
        self._updates = 0

    def update(self, batch: Mapping[str, np.ndarray], rate: float) -> dict[str, float]:
        """Makes one update; returns loss (with L2 under SGD) and the norm before clipping."""
        loss, gradients = loss_and_gradients(self.weights, batch)
        penalty = 0.0
        if self._optimizer == "sgd":
            for name in KERNELS:
                gradients[name] = gradients[name] + self._decay * self.weights[name]
                penalty += 0.5 * self._decay * float(np.square(self.weights[name]).sum())
        norm = float(np.sqrt(sum(np.square(g).sum() for g in gradients.values())))
        self._updates += 1
        for name, gradient in self._clipped(gradients).items():
            if self._optimizer == "sgd" and self._follows_rate:
                self.first[name] = self._beta1 * self.first[name] + gradient
                self.weights[name] -= rate * self.first[name]
            elif self._optimizer == "sgd":
                self.first[name] = self._beta1 * self.first[name] - rate * gradient
                self.weights[name] += self.first[name]
            else:
                self._adamw(name, gradient, rate)
        self._move_averages()
        return {"loss": loss + penalty, "reg_l2_loss": penalty, "gradient_norm": norm}

    def _clipped(self, gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._clip:
            return dict(gradients)
        each = {}
        for name, gradient in gradients.items():
            size = np.linalg.norm(gradient)
            each[name] = gradient * (self._clip / size if size > self._clip else 1.0)
        whole = np.sqrt(sum(np.square(g).sum() for g in each.values()))
        factor = self._clip / whole if whole > self._clip else 1.0
        return {name: gradient * factor for name, gradient in each.items()}

    def _adamw(self, name: str, gradient: np.ndarray, rate: float) -> None:
        if name in KERNELS:
            self.weights[name] -= rate * self._decay * self.weights[name]
        beta1, beta2, t = self._beta1, self._beta2, self._updates
        self.first[name] = beta1 * self.first[name] + (1.0 - beta1) * gradient
        self.second[name] = beta2 * self.second[name] + (1.0 - beta2) * np.square(gradient)
        scale = np.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        step = self.first[name] / (np.sqrt(self.second[name]) + self._epsilon)
        self.weights[name] -= rate * scale * step

    def _move_averages(self) -> None:
        t = self._updates
        decay = min(self._average_decay, (1.0 + t) / (10.0 + t))
        for name, value in self.weights.items():
            self.averages[name] -= (1.0 - decay) * (self.averages[name] - value)
