"""Train on latents with Hugging Face Accelerate: `accelerate launch examples/train_accelerate.py latents`.

The loader already gives every process its own slice of each batch, so it is not handed to `prepare`.
"""

import sys

from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.nn.functional import cross_entropy

from walloc_data import LatentDataset, create_latent_model
from walloc_data.adapters import save_latent_model


def main(data: str, epochs: int = 10, batch_size: int = 128, model_name: str = "resnet18") -> float:
    accelerator = Accelerator()
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    train, val = (LatentDataset(data, split=split, shuffle=split == "train") for split in ("train", "val"))
    batches = train.loader(batch_size=batch_size, drop_last=True, **place)
    val_batches = val.loader(batch_size=batch_size, pad=True, **place)
    model = create_latent_model(model_name, dataset=train)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-5)
    model, optimizer = accelerator.prepare(model, optimizer)
    accuracy = 0.0
    for epoch in range(epochs):
        model.train()
        scheduler.step(epoch)
        for latents, labels in batches:
            loss = cross_entropy(model(latents.to(accelerator.device)), labels.to(accelerator.device))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        model.eval()
        correct = 0.0
        for latents, labels, valid in val_batches:
            hit = model(latents.to(accelerator.device)).argmax(1).cpu() == labels
            correct += float(accelerator.reduce((hit & valid).sum().to(accelerator.device)))
        accuracy = correct / len(val)
        accelerator.print(f"epoch {epoch}: validation {accuracy:.1%}")
    if accelerator.is_main_process:
        save_latent_model(accelerator.unwrap_model(model), "runs/accelerate")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1])
