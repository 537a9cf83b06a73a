"""Train a timm model on an encoded data set with Lightning; the same command resumes a stopped run within its epoch.

    python examples/train_lightning.py my-latents --model resnet18 --epochs 12 --devices 2 --output runs/lightning

Lightning stores the loader's state in each checkpoint, so a resumed run gets the remaining batches of the epoch. The
loader gives each process its own part of every batch: no distributed sampler is needed.
"""

import argparse
from pathlib import Path

import lightning
import torch

from walloc_data import LatentDataset, create_latent_model


class Classifier(lightning.LightningModule):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(argv: list[str] | None = None) -> lightning.Trainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or URL of an encoded data set")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--batch-size", type=int, default=128, help="samples per device and step")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--output", type=Path, default=Path("runs/lightning"))
    args = parser.parse_args(argv)
    lightning.seed_everything(0)
    train = LatentDataset(args.data, shuffle=True, seed=0)
    loader = train.loader(batch_size=args.batch_size, drop_last=True, num_workers=args.workers)
    model = Classifier(create_latent_model(args.model, dataset=train))
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        args.output, save_last=True, every_n_train_steps=args.save_steps
    )
    trainer = lightning.Trainer(
        max_epochs=args.epochs, max_steps=args.max_steps, devices=args.devices, callbacks=[saving], logger=False
    )
    last = args.output / "last.ckpt"
    trainer.fit(model, loader, ckpt_path=last if last.exists() else None)
    return trainer


if __name__ == "__main__":
    main()
