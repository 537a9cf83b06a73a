"""Train a timm model on an encoded data set with the Hugging Face Trainer; the same command resumes a stopped run.

    python examples/train_hf.py my-latents --model resnet18 --epochs 12 --output runs/hf
    torchrun --nproc-per-node 2 examples/train_hf.py my-latents --model resnet18 --epochs 12 --output runs/hf

The Trainer itself distributes batches over processes, and a resumed run skips the batches that it has trained on. The
loader below therefore gives it all batches of an epoch, in an order that depends on the seed and the epoch alone.
"""

import argparse
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader

from walloc_data import LatentDataset, create_latent_model
from walloc_data.dataset import TrainerCollator


class Classifier(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class LatentTrainer(transformers.Trainer):
    def get_train_dataloader(self) -> DataLoader:
        size = self.args.per_device_train_batch_size
        sampler = self.train_dataset.batch_sampler(batch_size=size, drop_last=True, rank=0, world_size=1)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)


def main(argv: list[str] | None = None) -> LatentTrainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or URL of an encoded data set")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--batch-size", type=int, default=128, help="samples per process and step")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--output", type=Path, default=Path("runs/hf"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = transformers.TrainingArguments(
        str(args.output), num_train_epochs=args.epochs, max_steps=args.max_steps, save_steps=args.save_steps,
        save_total_limit=2, per_device_train_batch_size=args.batch_size, dataloader_num_workers=args.workers,
        learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=args.save_steps, report_to=[], seed=0,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    train = LatentDataset(args.data, shuffle=True, seed=0)
    transformers.set_seed(0)
    model = Classifier(create_latent_model(args.model, dataset=train))
    trainer = LatentTrainer(model=model, args=settings, train_dataset=train, data_collator=TrainerCollator())
    trainer.train(resume_from_checkpoint=transformers.trainer_utils.get_last_checkpoint(args.output))
    return trainer


if __name__ == "__main__":
    main()
