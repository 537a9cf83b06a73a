"""Whatever training wraps around a model, in any order, comes off when it is saved, asked or grouped."""

import os
import subprocess

import pytest
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from tests import warm
from walloc_data.adapters import (
    create_latent_model,
    freeze_except,
    latent_config,
    load_latent_model,
    model_from_config,
    parameter_groups,
    save_latent_model,
    stem_of,
    summarize,
)
from walloc_data.errors import ModelError


@pytest.fixture(scope="module")
def _one_process(tmp_path_factory):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/{os.getpid()}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.fixture
def model(spec, statistics):
    torch.manual_seed(0)
    return create_latent_model(
        "test_convnext", codec=spec, statistics=statistics, num_classes=3, input_shape=(12, 20, 20)
    ).eval()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


WRAPPED = {
    "compile": compiled,
    "DDP": DistributedDataParallel,
    "DataParallel": DataParallel,
    "compile of DDP": lambda module: compiled(DistributedDataParallel(module)),
    "timm's EMA": ModelEmaV3,
    "timm's EMA of DDP of compile": lambda module: ModelEmaV3(compiled(module)).module,
    "torch's average": AveragedModel,
}


@pytest.mark.slow  # as a whole: every way of wrapping takes a second or two
@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_wrapped_model_is_saved_and_asked_like_a_bare_one(wrap, model, latents, tmp_path):
    wrapped = wrap(model)
    assert latent_config(wrapped) == latent_config(model)
    assert summarize(wrapped) == summarize(model)
    assert torch.equal(stem_of(wrapped).weight, stem_of(model).weight)
    assert [group["name"] for group in parameter_groups(wrapped)] == [g["name"] for g in parameter_groups(model)]
    assert freeze_except(wrapped, "stem") == ["stem.0.weight", "stem.0.bias"]
    save_latent_model(wrapped, tmp_path)
    again = load_latent_model(tmp_path)
    assert list(again.state_dict()) == list(model.state_dict())
    assert torch.equal(again(latents), model(latents))


SHARDED = """
import copy, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from walloc_data.adapters import create_latent_model, load_latent_model, save_latent_model
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
torch.manual_seed(0)
bare = load_latent_model(f"{folder}/bare")
latents = torch.arange(12 * 400).reshape(1, 12, 20, 20).remainder(7).to(torch.int8)
cpu = torch.device("cpu")
wrapped = {
    "fsdp": lambda model: FullyShardedDataParallel(model, device_id=cpu),
    "names": lambda model: FullyShardedDataParallel(model, device_id=cpu, use_orig_params=True),
    "compiled": lambda model: torch.compile(FullyShardedDataParallel(model, device_id=cpu), backend="eager"),
    "fsdp2": fully_shard,
}
for name, wrap in wrapped.items():
    save_latent_model(wrap(copy.deepcopy(bare)), f"{folder}/{name}")
dist.barrier()
for name in wrapped:
    again = load_latent_model(f"{folder}/{name}")
    assert list(again.state_dict()) == list(bare.state_dict())
    assert torch.equal(again(latents), bare(latents)), name
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_model_sharded_over_two_ranks_is_saved_whole(model, tmp_path):
    save_latent_model(model, tmp_path / "bare")
    (tmp_path / "script.py").write_text(SHARDED)
    processes = [
        warm.Popen(
            ["script.py", str(tmp_path), str(rank)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preload=("timm", "torch.distributed.fsdp"),
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output[-4000:]


def test_a_model_with_compiled_parts_is_saved_by_its_own_names(model, latents, tmp_path):
    expected, names = model(latents), sorted(model.state_dict())
    model.stages[2] = compiled(model.stages[2])
    assert any("_orig_mod" in name for name in model.state_dict())
    save_latent_model(model, tmp_path)
    again = load_latent_model(tmp_path)
    assert sorted(again.state_dict()) == names
    assert torch.equal(again(latents), expected)


@pytest.mark.usefixtures("_one_process")
def test_a_training_checkpoint_of_a_wrapped_model_loads(model, latents):
    for wrapped in (
        compiled(model),
        DistributedDataParallel(compiled(model)),
        compiled(DistributedDataParallel(model)),
    ):
        again = model_from_config(latent_config(model), weights=wrapped.state_dict(), context="last.pt").eval()
        assert torch.equal(again(latents), model(latents))


def test_weights_that_do_not_fit_are_counted_and_not_listed(model):
    weights = model.state_dict()
    weights["head.fc.weight"] = weights["head.fc.weight"][:2]
    weights["more"] = weights.pop("stem.0.bias")
    words = (
        r"last.pt: the weights do not fit test_convnext as its config describes it: 1 missing \(stem.0.bias, ...\), "
    )
    words += r"1 left over \(more, ...\), 1 of another shape \(head.fc.weight, ...\)$"
    with pytest.raises(ModelError, match=words):
        model_from_config(latent_config(model), weights=weights, context="last.pt")


@pytest.mark.parametrize("wrap", [lambda module: module, compiled, DataParallel, ModelEmaV3])
def test_other_models_are_refused_by_their_own_name(wrap, tmp_path):
    other = wrap(nn.Linear(2, 2))
    for ask in (latent_config, stem_of, summarize, lambda model: save_latent_model(model, tmp_path)):
        with pytest.raises(ModelError, match=r"^Linear was not made by create_latent_model"):
            ask(other)
