"""What a ResNet of basic blocks looks like."""

from __future__ import annotations

from dataclasses import dataclass

STEMS = ("imagenet", "cifar")


@dataclass(frozen=True)
class Config:
    """ResNet-18 and its relatives.

    Attributes:
      stem: "imagenet" (7 x 7, stride 2, then a maximum over 3 x 3, stride 2) or "cifar" (3 x 3,
        stride 1, no pooling), which the continual-learning papers use at 32 x 32.
      width: channels of the first stage; each later stage has twice as many. 64 is ResNet-18, 20
        the "reduced" ResNet-18 of GEM and of the online papers.
      blocks: basic blocks a stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.
      channels: of the images.
      eps, momentum: of every batch norm.
      running: whether batch norms keep running statistics; without, evaluation reads the batch.
    """

    stem: str = "imagenet"
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    channels: int = 3
    eps: float = 1e-5
    momentum: float = 0.1
    running: bool = True

    def __post_init__(self):
        wrong = []
        if self.stem not in STEMS:
            wrong.append(f"stem {self.stem!r}, expected one of {', '.join(STEMS)}")
        if low := [f"{n} {s}" for n in ("width", "channels") if (s := getattr(self, n)) < 1]:
            wrong.append(f"expected at least 1, found {', '.join(low)}")
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks or any(count < 1 for count in self.blocks):
            wrong.append(f"blocks {self.blocks}, expected at least one a stage")
        if not 0 <= self.momentum <= 1:
            wrong.append(f"momentum {self.momentum}, expected 0 to 1")
        if wrong:
            raise ValueError(f"ResNet config: {'; '.join(wrong)}")

    @property
    def features(self) -> int:
        """Width of the features, the channels of the last stage.

        >>> Config(width=20).features
        160
        """
        return self.width * 2 ** (len(self.blocks) - 1)
