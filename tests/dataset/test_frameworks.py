"""Scripts as a new user writes them, in processes of their own: Lightning, Hugging Face's Trainer and Accelerate.

Every class has one sample, so a batch's labels say which samples it holds, and what the transform drew is found again
in the stored latents.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import warm
from walloc_data import LatentDataset

pytestmark = pytest.mark.slow

FRAMEWORKS = ("lightning.pytorch", "transformers.trainer", "timm")
NUM_SAMPLES = 48
Expected = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., object]) -> Path:
    """48 samples of 48 classes, with their mirror images."""
    root = tmp_path_factory.mktemp("latents")
    make_dataset(root, num_samples=NUM_SAMPLES, num_classes=NUM_SAMPLES, shapes=((6, 6),), mirror=True)
    return root


def run(script: str, folder: Path, *arguments: object, world_size: int = 1) -> None:
    """Run a script, in processes as torchrun starts them."""
    path = folder / "script.py"
    path.write_text(script)
    warm.launch([path, *arguments], world_size=world_size, cwd=folder, preload=FRAMEWORKS)


def drawn(expected_latent: Expected, latent: torch.Tensor, label: int) -> tuple[int, int, bool]:
    """(top, left, mirrored) of a crop of 4 x 4 cells of a sample."""
    for mirrored in (False, True):
        whole = expected_latent(label, (6, 6), mirror=mirrored)
        for top in range(3):
            for left in range(3):
                if np.array_equal(whole[:, top : top + 4, left : left + 4], latent.numpy()):
                    return top, left, mirrored
    raise AssertionError("a latent that no crop of its sample gives")


def check_epochs(expected_latent: Expected, epochs: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    """Every epoch has every sample once, in an order and with draws of its own."""
    orders, draws = [], []
    for batches in epochs:
        found = {}
        for batch, labels in batches:
            for latent, label in zip(batch, labels.tolist(), strict=True):
                found[label] = drawn(expected_latent, latent, label)
        orders.append(list(found))
        draws.append([found[label] for label in range(NUM_SAMPLES)])
        assert len(set(draws[-1])) > 9  # of 18
        assert NUM_SAMPLES // 6 < sum(mirrored for _, _, mirrored in draws[-1]) < NUM_SAMPLES * 5 // 6
    assert all(sorted(order) == list(range(NUM_SAMPLES)) for order in orders)
    assert len({tuple(order) for order in orders}) == len({tuple(draw) for draw in draws}) == len(epochs)


def order_of(root: Path, *, batch_size: int, epochs: int) -> list[list[int]]:
    """Labels of the global batches of several epochs, as our own loader gives them."""
    loader = LatentDataset(root, shuffle=True, seed=2).loader(batch_size=batch_size, drop_last=True)
    return [labels.tolist() for _ in range(epochs) for _, labels in loader]


LIGHTNING = """
import sys, torch, lightning
from torch.utils.data import DataLoader
from walloc_data import LatentDataset
from walloc_data.transforms import RandomCrop

class Killed(Exception):
    pass

class Model(lightning.LightningModule):
    def __init__(self, stop=None):
        super().__init__()
        self.stop = stop
        self.layer = torch.nn.Linear(12 * 4 * 4, 48)
        self.seen = []
    def training_step(self, batch, number):
        latents, labels = batch
        if self.global_step == self.stop:
            raise Killed
        self.seen.append((self.current_epoch, latents.clone(), labels.clone()))
        return torch.nn.functional.cross_entropy(self.layer(latents.flatten(1).float()), labels)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

def fit(loader, *, model=None, ckpt_path=None, **arguments):
    model = model or Model()
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                                **arguments)
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return model.seen, trainer
"""

LIGHTNING_DDP = (
    LIGHTNING
    + """
root, out = sys.argv[1:]
train = LatentDataset(root, shuffle=True, seed=2, mirror=True, transform=RandomCrop(4))
loaders = {
    "own": train.loader(batch_size=4, drop_last=True, num_workers=1),  # before any process group
    "plain": DataLoader(LatentDataset(root, mirror=True, transform=RandomCrop(4)), batch_size=4, shuffle=True),
}
for name, loader in loaders.items():
    seen, trainer = fit(loader, devices=2, strategy="ddp", max_epochs=2, enable_checkpointing=False)
    torch.save(seen, f"{out}/{name}-{trainer.global_rank}.pt")
"""
)


def test_lightning_in_two_processes_shares_every_batch(
    latents: Path, tmp_path: Path, expected_latent: Expected
) -> None:
    pytest.importorskip("lightning")
    run(LIGHTNING_DDP, tmp_path, latents, tmp_path, world_size=2)
    for name in ("own", "plain"):
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)]
        epochs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], []]
        for (epoch, a, x), (same, b, y) in zip(*ranks, strict=True):
            assert epoch == same
            epochs[epoch].append((torch.cat([a, b]), torch.cat([x, y])))
        assert [len(batches) for batches in epochs] == [6, 6]
        check_epochs(expected_latent, epochs)
        if name == "own":
            labels = [labels.tolist() for batches in epochs for _, labels in batches]
            assert labels == order_of(latents, batch_size=8, epochs=2)


LIGHTNING_RESUME = (
    LIGHTNING
    + """
root, out = sys.argv[1:]
def loader(workers):
    train = LatentDataset(root, shuffle=True, seed=2, mirror=True, transform=RandomCrop(4))
    return train.loader(batch_size=4, drop_last=True, num_workers=workers)
straight, _ = fit(loader(0), max_epochs=2, enable_checkpointing=False)
got, path = [], None
for number, steps in enumerate((3, 7, 10, 17, None)):  # several times within one epoch of 12 steps, and over its end
    every = lightning.pytorch.callbacks.ModelCheckpoint(out, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    model = Model(stop=steps)
    try:
        fit(loader(number % 2), model=model, max_epochs=2, callbacks=[every], ckpt_path=path)
    except Killed:
        path = f"{out}/step={steps}.ckpt"
    got += model.seen
torch.save([straight, got], f"{out}/result.pt")
"""
)


def test_lightning_resumes_within_an_epoch_as_if_never_stopped(latents: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    run(LIGHTNING_RESUME, tmp_path, latents, tmp_path)
    straight, got = torch.load(tmp_path / "result.pt")
    assert len(straight) == len(got) == 24
    for (epoch, a, x), (other, b, y) in zip(straight, got, strict=True):
        assert epoch == other
        assert torch.equal(x, y)
        assert torch.equal(a, b)  # the draws, too


TRAINER = """
import sys, torch, transformers
from torch.utils.data import DataLoader
from walloc_data import LatentDataset
from walloc_data.dataset import TrainerCollator
from walloc_data.transforms import RandomCrop

root, out = sys.argv[1:]

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12 * 4 * 4, 48)
        self.seen = []
    def forward(self, latents, labels):
        self.seen.append((latents.clone(), labels.clone()))
        logits = self.layer(latents.flatten(1).float())
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

collate = TrainerCollator(inputs="latents")

class Exact(transformers.Trainer):
    def get_train_dataloader(self):
        # The Trainer splits batches among processes: it is given whole ones.
        sampler = self.train_dataset.batch_sampler(batch_size=4, drop_last=True, rank=0, world_size=1)
        loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=collate, num_workers=1)
        return self.accelerator.prepare(loader)

def train(kind, *, steps=-1, resume=None, **arguments):
    model = Model()
    settings = transformers.TrainingArguments(
        output_dir=f"{out}/run", per_device_train_batch_size=4, num_train_epochs=3, use_cpu=True, report_to=[],
        disable_tqdm=True, logging_strategy="no", save_strategy="steps", save_steps=5, seed=1, **arguments)
    data = LatentDataset(root, shuffle=kind is Exact, seed=2, mirror=True, transform=RandomCrop(4))
    trainer = kind(model=model, args=settings, train_dataset=data, data_collator=collate)
    if steps > 0:
        class Stop(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step >= steps
        trainer.add_callback(Stop())
    trainer.train(resume_from_checkpoint=resume)
    return model.seen

result = {"plain-0": train(transformers.Trainer)}
result["plain-2"] = train(transformers.Trainer, dataloader_num_workers=2, dataloader_persistent_workers=True)
result["straight"] = train(Exact)
train(Exact, steps=5)
result["resumed"] = train(Exact, resume=f"{out}/run/checkpoint-5")
result["second"] = train(Exact, resume=f"{out}/run/checkpoint-20")
torch.save(result, f"{out}/result.pt")
"""


def test_the_trainer_draws_anew_every_epoch_and_resumes_exactly(
    latents: Path, tmp_path: Path, expected_latent: Expected
) -> None:
    pytest.importorskip("transformers")
    run(TRAINER, tmp_path, latents, tmp_path)
    result = torch.load(tmp_path / "result.pt")
    for name in ("plain-0", "plain-2", "straight"):
        assert len(result[name]) == 36
        check_epochs(expected_latent, [result[name][start : start + 12] for start in (0, 12, 24)])
    straight = result["straight"]
    assert [labels.tolist() for _, labels in straight] == order_of(latents, batch_size=4, epochs=3)
    for name, start in (("resumed", 5), ("second", 20)):
        assert len(result[name]) == 36 - start
        for (a, x), (b, y) in zip(straight[start:], result[name], strict=True):
            assert torch.equal(x, y)
            assert torch.equal(a, b)


ACCELERATE = """
import sys, torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from torch.utils.data import DataLoader
from walloc_data import LatentDataset
from walloc_data.errors import LoaderError
from walloc_data.transforms import RandomCrop

root, out = sys.argv[1:]
data = LatentDataset(root, shuffle=True, seed=2, mirror=True, transform=RandomCrop(4))
config = DataLoaderConfiguration(split_batches=True)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4, dataloader_config=config)
rank = accelerator.process_index
try:  # one that slices batches by rank must not be split again
    sliced = accelerator.prepare(DataLoader(data, batch_sampler=data.batch_sampler(batch_size=4, drop_last=True)))
    next(iter(sliced))
    refused = ""
except LoaderError as error:
    refused = str(error)
sampler = data.batch_sampler(batch_size=8, drop_last=True, rank=0, world_size=1)
model = torch.nn.Linear(12 * 4 * 4, 48)
model, optimizer, loader = accelerator.prepare(
    model, torch.optim.SGD(model.parameters(), lr=0.01), DataLoader(data, batch_sampler=sampler, num_workers=1))
seen, steps = [], []
for epoch in range(2):
    for latents, labels in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(latents.flatten(1).float()), labels)
            accelerator.backward(loss)
            optimizer.step()
            steps.append(accelerator.sync_gradients)
            optimizer.zero_grad()
        seen.append((latents, labels))
loader.set_epoch(1)
skipped = [(latents, labels) for latents, labels in skip_first_batches(loader, 4)]
own = data.loader(global_batch_size=8, drop_last=True)  # knows its slice: it is not prepared
own_seen = [(latents, labels) for latents, labels in own]
torch.save({"refused": refused, "seen": seen, "steps": steps, "skipped": skipped, "own": own_seen}, f"{out}/{rank}.pt")
accelerator.end_training()
"""


def test_accelerate_counts_every_batch_and_steps_at_the_end_of_an_epoch(
    latents: Path, tmp_path: Path, expected_latent: Expected
) -> None:
    pytest.importorskip("accelerate")
    run(ACCELERATE, tmp_path, latents, tmp_path, world_size=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    def joined(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        parts: list[Any] = [rank[name] for rank in ranks]
        return [tuple(map(torch.cat, zip(*batches, strict=True))) for batches in zip(*parts, strict=True)]  # type: ignore[misc]

    seen = joined("seen")
    assert len(seen) == 12
    check_epochs(expected_latent, [seen[:6], seen[6:]])
    assert [labels.tolist() for _, labels in seen] == order_of(latents, batch_size=8, epochs=2)
    # A window of four batches, and the two that are left: nothing leaks into the next epoch.
    assert ranks[0]["steps"] == 2 * [False, False, False, True, False, True]
    for name, expected in (("skipped", seen[10:]), ("own", seen[:6])):
        assert len(joined(name)) == len(expected)
        for (a, x), (b, y) in zip(joined(name), expected, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(a, b)
    assert "gives each of 2 ranks its slice of every batch" in ranks[0]["refused"]
