"""A judge of photographs: a linear classifier of their classes on the features of EfficientNet-Lite0.

The network was trained on ImageNet and knows neither the models nor their CLIP. Only the last layer is trained here, on
the training pictures of all classes, so it takes a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rdm.evaluate.concepts import shares
from rdm.models.clip import ranks

DECAY = 1e-4  # weight of the squared weights in the loss
STEPS = 60  # of L-BFGS


@dataclass(frozen=True)
class Judge:
    """A linear classifier of features.

    Attributes:
        names: the names of the classes, sorted.
        mean: mean of the training features, ``[D]``.
        spread: standard deviation of the training features, ``[D]``.
        weight: ``[classes, D]``.
        bias: ``[classes]``.
    """

    names: Sequence[str]
    mean: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def trained(cls, features: Tensor, captions: Sequence[str]) -> Judge:
        """Returns the classifier of some features ``[N, D]``, whose classes are the captions; each class counts alike.

        Raises:
            ValueError: there are fewer than two classes.
        """
        names = sorted(set(captions))
        if len(names) < 2:
            raise ValueError(f"got {len(names)} class, expected at least 2; give pictures with names of classes")
        target = places(names, captions)
        mean, spread = features.mean(0), features.std(0).clamp(min=1e-6)
        shown, share = (features - mean) / spread, len(target) / (len(names) * torch.bincount(target).float())
        weight = torch.zeros(len(names), features.shape[1], requires_grad=True)
        bias = torch.zeros(len(names), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(shown @ weight.T + bias, target, share) + DECAY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return cls(names, mean, spread, weight.detach(), bias.detach())

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits ``[N, classes]`` of features ``[N, D]``."""
        return (features - self.mean) / self.spread @ self.weight.T + self.bias

    def accuracy(self, features: Tensor, captions: Sequence[str]) -> dict[str, float]:
        """Returns how often the caption of a picture is its likeliest class, and one of the likeliest five."""
        return shares(ranks(self.logits(features), places(self.names, captions)))

    def kinds(self, features: Tensor, group_of: Mapping[str, str]) -> dict[str, float]:
        """Returns the share of pictures that are called by a class of each group.

        Args:
            features: ``[N, D]``.
            group_of: the group of each class.
        """
        called = [group_of[self.names[place]] for place in self.logits(features).argmax(1).tolist()]
        return {group: called.count(group) / len(called) for group in sorted(set(group_of.values()))}


def places(names: Sequence[str], captions: Sequence[str]) -> Tensor:
    """Returns the number of each caption among the names, ``[N] int64``.

    Raises:
        ValueError: a caption is not among them.
    """
    index = {name: place for place, name in enumerate(names)}
    if unknown := sorted(set(captions) - set(index)):
        raise ValueError(f"got {', '.join(unknown[:3])}, expected classes of the training pictures")
    return torch.tensor([index[caption] for caption in captions])
