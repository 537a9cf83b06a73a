"""Train on latents with Hugging Face Accelerate: `accelerate launch examples/train_accelerate.py latents`.

The loader already gives every process its own slice of each batch, so it is not handed to `prepare`. For the same
reason `accelerator.accumulate`, which learns the end of an epoch from a prepared loader, is not used: here the window
of batches whose gradients make one step is counted, and the last one of an epoch may be shorter.
"""

import argparse
from contextlib import nullcontext

from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.nn.functional import cross_entropy

from walloc_data import LatentDataset, create_latent_model
from walloc_data.adapters import save_latent_model


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or URL of an encoded data set")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-split", help="default: the first of val, validation, valid, dev, test")
    parser.add_argument("--model", default="resnet18", help="name of a timm model")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128, help="samples per process and step")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches per optimizer step")
    parser.add_argument("--output", default="runs/accelerate", help="folder for the final model")
    args = parser.parse_args(argv)
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulate)
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    train = LatentDataset(args.data, split=args.train_split, shuffle=True)
    val = LatentDataset(args.data, split=train.manifest.held_out_split(args.val_split, context=args.data))
    batches = train.loader(batch_size=args.batch_size, drop_last=True, **place)
    val_batches = val.loader(batch_size=args.batch_size, pad=True, **place)
    model = create_latent_model(args.model, dataset=train)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=args.epochs, warmup_epochs=1, warmup_lr=1e-5)
    model, optimizer = accelerator.prepare(model, optimizer)
    steps = accelerator.gradient_accumulation_steps  # --accumulate, or what `accelerate launch` was told
    accuracy = 0.0
    for epoch in range(args.epochs):
        model.train()
        scheduler.step(epoch)
        for number, (latents, labels) in enumerate(batches):
            window = min(steps, len(batches) - number // steps * steps)  # batches in this window
            full = number % steps == window - 1
            with nullcontext() if full else accelerator.no_sync(model):
                loss = cross_entropy(model(latents.to(accelerator.device)), labels.to(accelerator.device))
                accelerator.backward(loss * (steps / window))  # `backward` divides by `steps`
            if full:
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        correct = 0.0
        for latents, labels, valid in val_batches:
            hit = model(latents.to(accelerator.device)).argmax(1).cpu() == labels
            correct += float(accelerator.reduce((hit & valid).sum().to(accelerator.device)))
        accuracy = correct / len(val)
        accelerator.print(f"epoch {epoch}: validation {accuracy:.1%}")
    if accelerator.is_main_process:
        save_latent_model(accelerator.unwrap_model(model), args.output)
    return accuracy


if __name__ == "__main__":
    main()
