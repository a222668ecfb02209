"""Handwritten digits, and a small vision transformer to tell them apart.

Neither says anything of optimizers: that is in recipe.yaml.
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

CLASSES = 10
SIDE = 8
"""Pixels in a row of an image, and rows."""


class Digits(LightningDataModule):
    """The 1,797 images that come with scikit-learn.

    Args:
        batch_size: images in a batch.
        held_out: the share that is kept for validation and test, half each.
    """

    def __init__(self, batch_size: int = 32, held_out: float = 0.2) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.held_out = held_out

    def setup(self, stage: str) -> None:
        """Read the images, and split them in the same way every time."""
        digits = load_digits()
        images = torch.tensor(digits.images / 16.0, dtype=torch.float32)
        everything = TensorDataset(images, torch.tensor(digits.target))
        shares = [1 - self.held_out, self.held_out / 2, self.held_out / 2]
        same = torch.Generator().manual_seed(0)
        self.train, self.val, self.test = random_split(everything, shares, same)

    def train_dataloader(self) -> DataLoader:
        """Return the images to learn from, in random order."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the images to judge by during training."""
        return DataLoader(self.val, 256)

    def test_dataloader(self) -> DataLoader:
        """Return the images to judge by in the end."""
        return DataLoader(self.test, 256)


class VisionTransformer(LightningModule):
    """Patches in, class out.

    Args:
        patch: pixels of a patch's side.
        dim: numbers in a token.
        depth: layers.
        heads: attention heads.
    """

    def __init__(self, patch: int = 2, dim: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((SIDE // patch) ** 2, dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, 2 * dim, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return a logit for each class, (batch, 10), of images, (batch, 8, 8)."""
        tokens = self.patches(images.unsqueeze(1)).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens).mean(1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Return the loss of one batch."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor]) -> None:
        """Log how well it does."""
        self._judge(batch, "val")

    def test_step(self, batch: list[Tensor]) -> None:
        """Log how well it does."""
        self._judge(batch, "test")

    def _judge(self, batch: list[Tensor], name: str) -> None:
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        losses = {f"{name}_loss": F.cross_entropy(logits, labels), f"{name}_accuracy": accuracy}
        self.log_dict(losses, prog_bar=True)
