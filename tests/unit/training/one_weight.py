"""A detector of one weight, and what trains and measures it in no time."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from codetr.loss_terms import Losses, LossTerm
from codetr.models.transformers import QueryTable
from codetr.structures import (
    Batch,
    Decoded,
    ImageInfo,
    Images,
    Memory,
    Predictions,
    Queries,
    QueryGroup,
    Targets,
)
from codetr.supervision.schemes.protocol import Scheme


class OneWeight(nn.Module):
    """Predicts the same box everywhere; its one weight is the box's centre."""

    num_classes, num_layers, groups = 1, 1, False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def encode(self, images: Images) -> Memory:
        tokens = self.weight * images.pixels.mean((1, 2, 3))[:, None, None]
        return Memory(
            tokens=tokens,
            padding=torch.zeros(len(images), 1, dtype=torch.bool),
            shapes=((1, 1),),
            strides=(1,),
            valid_ratios=torch.ones(len(images), 1, 2),
        )

    def queries(self, memory: Memory, tables: Sequence[QueryTable] = ()) -> tuple[Queries, ...]:
        return (Queries(content=memory.tokens, anchors=torch.zeros(len(memory.tokens), 1, 4)),)

    def decode(self, memory: Memory, groups: Sequence[QueryGroup]) -> Mapping[str, Decoded]:
        return {
            group.name: Decoded(layers=(self.predict(group.queries.content),), group=group)
            for group in groups
        }

    def predict(self, content: Tensor) -> Predictions:
        return Predictions(logits=content, boxes=content.expand(-1, -1, 4))

    def forward(self, images: Images) -> Predictions:
        return self.predict(self.encode(images).tokens)


class NoisyScheme(Scheme):
    """Pulls the prediction to a random number; ``broken`` gives the value to add at a step."""

    def __init__(self, action: Callable[[int], float] = lambda step: 0.0) -> None:
        super().__init__()
        self.action = action
        self.step = 0

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Losses:
        prediction = decoded["main"].layers[0].logits
        extra = self.action(self.step)
        self.step += 1
        distance = (prediction - torch.randn(()) - 3).abs().mean() + extra
        return {"layer0/l1": LossTerm(distance, 2.0)}


class Evaluator:
    """Its AP is the detector's weight, as seen through predictions."""

    def reset(self) -> None:
        self.seen: list[float] = []

    def update(self, found: Sequence[Tensor], infos: Sequence[ImageInfo]) -> None:
        self.seen += [float(f) for f in found]

    def compute(self) -> dict[str, float]:
        return {"AP": sum(self.seen) / len(self.seen)}

    def table(self) -> str:
        return f"AP {self.compute()['AP']}"


def batch_of(indices: list[int]) -> Batch:
    n = len(indices)
    images = Images(
        pixels=torch.ones(n, 3, 2, 2),
        padding=torch.zeros(n, 2, 2, dtype=torch.bool),
        sizes=torch.full((n, 2), 2),
        padded_sizes=torch.full((n, 2), 2),
    )
    target = Targets(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        weights=torch.zeros(0),
        size=torch.tensor([2.0, 2.0]),
    )
    infos = tuple(ImageInfo(image_id=i, original_size=(2, 2), scale=(1, 1)) for i in indices)
    return Batch(images=images, targets=(target,) * n, infos=infos)
