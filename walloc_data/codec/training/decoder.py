"""Training of a decoder for a fixed encoder.

The latents of a crop are what the encoder gives it, rounded, from the first step on, so every data set of that encoder
keeps its latents and its hash. The loss is the mean over crops of log(squared pixel error + 10), in units of 1/255:
what PSNR averages over pictures, with a constant that keeps flat crops from counting for everything. A quarter of the
crops are analysed on their own, as whole pictures are, and wrap around at their borders; the others are cut out of a
larger analysis, as from the middle of a picture. The last part of a run takes crops of twice the side, a quarter as
many. Kernels learn by Muon, everything else by Adam; the rate rises over the first 2 % and falls to zero along a
cosine; the result is the exponential moving average of the weights. On a GPU a step is one replayed CUDA graph.

    OUTPUT/log.jsonl, OUTPUT/rd.png              the course of the training
    OUTPUT/.training/pictures.u8              the decoded pictures
    OUTPUT/.training/checkpoint.safetensors   everything a run needs to go on
    OUTPUT/decoder.safetensors, README.md     the decoder, at the end; .training is then deleted
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from walloc_data.codec.decoder_files import save_decoder
from walloc_data.codec.decoders import Decoder, build_decoder
from walloc_data.codec.model import WallocCodec
from walloc_data.codec.training.closed_form import fit_linear_decoder, latent_statistics, whole_cells
from walloc_data.codec.training.config import DecoderTrainConfig, DecoderTrainResult
from walloc_data.codec.training.crops import DeviceCrops, change_colours, draw_colours
from walloc_data.codec.training.muon import Muon
from walloc_data.codec.training.picture_sets import Corpus, PictureSet
from walloc_data.codec.training.state import Checkpoint, append_log, decoder_card, draw_log, open_run
from walloc_data.codec.wavelets import analysis_matrix, bands_of, interleave, synthesis_matrix, wavelet_synthesis
from walloc_data.deprecated import renamed_arguments
from walloc_data.devices import usable_device
from walloc_data.errors import CodecError
from walloc_data.files import atomic_file
from walloc_data.latents import compand, expand

__all__ = ["DecoderTrainConfig", "DecoderTrainResult", "train_decoder"]

_LOG_OFFSET = 10.0
_MARGIN_CELLS = 4  # an analysis filter reaches 28 pixels to either side
_FIT_PICTURES = 200
_LOG_EVERY, _SYNC_EVERY = 200, 20
_STATE_TYPES = {"step": int, "seconds": float}


@renamed_arguments(out="output", say="log")
def train_decoder(
    pictures: Sequence[PictureSet],
    output: str | Path,
    *,
    codec: WallocCodec,
    config: DecoderTrainConfig,
    resume: bool = True,
    log: Callable[[str], None] | None = None,
) -> DecoderTrainResult:
    """Train a decoder for a codec's encoder, and write it as a file that `load_codec(..., decoder=FILE)` reads.

    Args:
        pictures: the training pictures; they are read once, at the start of a new run.
        output: the folder to write. A run that was stopped there continues.
        codec: its encoder is used as it is; its linear decoder, if it has one, is where training starts.
        config: the settings.
        resume: False starts again.
        log: takes lines of progress.

    Raises:
        SettingsMismatchError: a run was begun in `output` with other settings.
        CodecError: `output` holds a finished decoder, or the pictures cannot be used.

    Example:
        >>> from walloc_data.codec import DecoderTrainConfig, PictureSet, load_codec, read_pictures, train_decoder
        >>> codec, info = load_codec("klt-16x")
        >>> config = DecoderTrainConfig(steps=2, width=16, blocks=3, batch_size=4, crop_cells=4, wide_from=1.0)
        >>> result = train_decoder([PictureSet("mine", read_pictures("pictures"))], "mine", codec=codec, config=config)
        >>> codec, info = load_codec("klt-16x", decoder="mine/decoder.safetensors")
        >>> info.decoder, info.decoder_version
        ('unet', '2')
    """
    output, log = Path(output), log or (lambda line: None)
    if (output / "decoder.safetensors").exists():
        raise CodecError(f"{output} already holds a decoder: choose another folder, or delete it")
    settings = {**config.to_dict(), "encoder_sha256": codec.encoder_sha256}
    corpus, checkpoint = open_run(output, pictures, settings, resume=resume, log=log, state_types=_STATE_TYPES)
    trainer = _Trainer(corpus, codec, config, settings, checkpoint, output=output, log=log)
    trainer.run()
    trained = trainer.codec()
    psnr = trainer.psnr(trained.decoder[1].to(trainer.device), scaled=False)
    card = decoder_card(codec.spec, settings, corpus=corpus, steps=trainer.step, psnr_db=psnr)
    with atomic_file(output / "README.md") as unfinished:
        unfinished.write_text(card)
    draw_log(output / "log.jsonl", output / "rd.png")
    save_decoder(trained, output / "decoder.safetensors", version=config.version, dtype=torch.float16)
    result = DecoderTrainResult(
        str(output / "decoder.safetensors"), config.version, trainer.step, round(psnr, 3), len(corpus.held_out)
    )
    shutil.rmtree(output / ".training")
    return result


class _Step:
    """Training steps on crops of one size; on a GPU captured once as a CUDA graph and replayed."""

    def __init__(self, trainer: "_Trainer", *, batch_size: int, cells: int) -> None:
        self.trainer, self.batch_size, self.cells, self.J = trainer, batch_size, cells, trainer.base.J
        self.crops = DeviceCrops(
            trainer.corpus, trainer.pixels, side_px=(cells + 2 * _MARGIN_CELLS) * trainer.base_cell_px
        )
        if self.crops.left_out:
            trainer.log(f"crops of {self.crops.side_px} px: {', '.join(self.crops.left_out)} has no picture so large")
        device = trainer.device
        self.whole = batch_size // 4  # crops that are analysed on their own
        self.analysis = {
            n: analysis_matrix(self.J, cells=n).flatten(0, 1).float().to(device)
            for n in (cells, cells + 2 * _MARGIN_CELLS)
        }
        self.synthesis = synthesis_matrix(self.J, cells=cells).flatten(1).float().to(device)
        self.drawn = torch.zeros(batch_size, 3, dtype=torch.int64, device=device)
        self.colours = torch.ones(batch_size, 2, device=device)
        self.loss = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = 0

    def run(self) -> Tensor:
        """Take one step; returns the loss, a scalar on the device."""
        trainer = self.trainer
        config, step = trainer.config, trainer.step
        self.drawn.copy_(self.crops.draw(self.batch_size, seed=config.seed, step=step))
        if config.colour:
            self.colours.copy_(draw_colours(self.batch_size, part=config.colour, seed=config.seed, step=step))
        if trainer.device.type != "cuda":
            self._compute()
        elif self.graph is None and self.warm < 3:  # before capture, libraries set themselves up
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._compute()
            torch.cuda.current_stream().wait_stream(stream)
            self.warm += 1
        else:
            if self.graph is None:
                trainer.zero_grad()
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self._compute()
            self.graph.replay()
        return self.loss

    def _compute(self) -> None:
        trainer, margin = self.trainer, _MARGIN_CELLS
        x = self.crops.cut(self.drawn).float()  # (N, 3, side, side) in [0, 255]
        if trainer.config.colour:
            x = change_colours(x, self.colours)
        inner = slice(margin * trainer.base_cell_px, -margin * trainer.base_cell_px)
        target = x[:, :, inner, inner]
        cut = self._analyse(x[self.whole :] / 255 - 0.5)[:, :, margin:-margin, margin:-margin]
        X = torch.cat((self._analyse(target[: self.whole] / 255 - 0.5), cut))  # (N, 192, cells, cells)
        with torch.no_grad():
            v = trainer.latents(X) / trainer.deviation
        with torch.autocast(trainer.device.type, torch.bfloat16, cache_enabled=False):
            X_hat = trainer.model(v)
        # Synthesis is linear: the pixels' error is the synthesis of the coefficients' error.
        bands = bands_of((X - X_hat.float()) * 255, J=self.J).permute(0, 1, 3, 4, 2, 5)
        error = self.synthesis @ bands.reshape(target.shape) @ self.synthesis.T
        error = target - (target - error).clamp(0, 255)  # decoded pixels are clamped
        squared = error.square().mean((1, 2, 3))
        loss = (squared + _LOG_OFFSET).log().mean()
        trainer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.update()
        self.loss.copy_(loss.detach())

    def _analyse(self, x: Tensor) -> Tensor:
        size, cells = 2**self.J, x.shape[2] >> self.J
        matrix = self.analysis[cells]
        bands = (matrix @ x @ matrix.T).reshape(*x.shape[:2], size, cells, size, cells)
        return interleave(bands.transpose(3, 4), J=self.J)


class _Trainer:
    """Training loop and its state."""

    def __init__(
        self,
        corpus: Corpus,
        codec: WallocCodec,
        config: DecoderTrainConfig,
        settings: dict[str, Any],
        checkpoint: Checkpoint | None,
        *,
        output: Path,
        log: Callable[[str], None],
    ) -> None:
        self.corpus, self.base, self.config, self.settings = corpus, codec, config, settings
        self.output, self.log = output, log
        self.base_cell_px = 2**codec.J
        self.device = device = usable_device(config.device)
        self.pixels = torch.from_numpy(corpus.pixels).to(device)
        encoder = codec.linear_encoder()  # its float32 weights, also where the codec was cast
        self.weight, self.bias = encoder.weight[:, :, None, None].to(device), encoder.bias.to(device)
        fit = corpus.training_pictures(limit=_FIT_PICTURES, seed=config.seed)
        statistics = codec.statistics or latent_statistics(codec, (corpus[i] for i in fit))
        # The decoder learns on latents of unit deviation; `codec` folds this into its first layers. Integers are about
        # 1.486 times v near zero: close enough for a scale.
        deviation = torch.tensor(statistics[1]).clamp(min=1.0) / 1.486
        self.deviation = deviation[:, None, None].to(device)
        bands = codec.channels * 4**codec.J
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: Decoder = build_decoder(config.decoder, latent_dim=codec.latent_dim, out_channels=bands)
        if config.start == "decoder":
            self._start_decoder(codec.decoder[1])
        else:
            self._start_linear(codec.linear_decoder or fit_linear_decoder(codec, (corpus[i] for i in fit)))
        self.model.to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self._build_optimizers()
        self.rate = torch.tensor(config.learning_rate, device=device)
        self.decay = torch.tensor(config.ema_decay, device=device)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate
        self.step, self.seconds = 0, 0.0
        self.held_out = self._held_out()
        if checkpoint is not None:
            self._restore(checkpoint)

    def _start_linear(self, linear: nn.Conv2d) -> None:
        """Start from the linear decoder, with every block close to the identity."""
        with torch.no_grad():
            weight = linear.weight.cpu() * self.deviation.cpu()[None]
            bias = torch.zeros(weight.shape[0]) if linear.bias is None else linear.bias.cpu()
            self.model.skip.load_state_dict({"weight": weight, "bias": bias})
            for parameter in self.model.exit.parameters():
                parameter.zero_()
            for name, parameter in self.model.named_parameters():
                if name.endswith("mix.weight"):
                    parameter.mul_(0.3)

    def _start_decoder(self, network: nn.Module) -> None:
        """Start from the codec's own decoder, on latents of unit deviation."""
        if not isinstance(network, Decoder) or network.config != self.model.config:
            found = network.config if isinstance(network, Decoder) else type(network).__name__
            raise CodecError(f"start='decoder': the codec's decoder is {found}, the settings say {self.model.config}")
        with torch.no_grad():
            self.model.load_state_dict({name: tensor.cpu() for name, tensor in network.state_dict().items()})
            for layer in (self.model.entry, self.model.skip):
                layer.weight.mul_(self.deviation.cpu()[None])

    def _build_optimizers(self) -> None:
        kernels: dict[int, list[nn.Parameter]] = {}
        others = []
        ends = {id(parameter) for layer in (self.model.entry, self.model.exit, self.model.skip)
                for parameter in layer.parameters()}  # fmt: skip
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 4 and id(parameter) not in ends and self.config.optimizer == "muon":
                    kernels.setdefault(module.groups, []).append(parameter)  # type: ignore[arg-type]
                else:
                    others.append(parameter)
        on_gpu = self.device.type == "cuda"
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, capturable=on_gpu, foreach=on_gpu)
        ]
        if kernels:
            self.optimizers.append(Muon({"params": params, "groups": groups} for groups, params in kernels.items()))

    def latents(self, X: Tensor) -> Tensor:
        """Return the expanded rounded latents of coefficients."""
        u = compand(nn.functional.conv2d(X, self.weight, self.bias), latent_bits=self.base.latent_bits)
        half = 2 ** (self.base.latent_bits - 1)
        return expand(u.round().clamp(-half, half - 1), latent_bits=self.base.latent_bits)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Take one step of the optimizers and of the moving average."""
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            averages: list[Tensor] = list(self.average.parameters())
            parameters: list[Tensor] = list(self.model.parameters())
            torch._foreach_mul_(averages, self.decay)
            torch._foreach_add_(averages, list(torch._foreach_mul(parameters, 1 - self.decay)))

    def run(self) -> None:
        """Train to the end."""
        config = self.config
        started = time.monotonic() - self.seconds
        saved = validated = time.monotonic()
        narrow = _Step(self, batch_size=config.batch_size, cells=config.crop_cells)
        wide: _Step | None = None
        if config.wide_from < 1:
            wide = _Step(self, batch_size=max(4, config.batch_size // 4), cells=2 * config.crop_cells)
        while (done := self._progress()) < 1:
            self.rate.fill_(config.learning_rate * min(1.0, done / 0.02 + 1e-3) * 0.5 * (1 + math.cos(math.pi * done)))
            self.decay.fill_(min(config.ema_decay, (2 + self.step) / (11 + self.step)))
            loss = (wide if wide is not None and done >= config.wide_from else narrow).run()
            self.step += 1
            if self.step % _SYNC_EVERY == 0 or self.device.type == "cpu":
                value = loss.item()  # waits for the device, so that the clock tells the truth
                if not math.isfinite(value):
                    raise CodecError(
                        f"{self.output}: the loss became {value} at step {self.step}; lower the learning rate"
                    )
            self.seconds = time.monotonic() - started
            if self.step % _LOG_EVERY == 0:
                append_log(self.output, {"step": self.step, "seconds": round(self.seconds, 1), "loss": loss.item()})
            now = time.monotonic()
            if now - validated >= config.validate_seconds:
                self._validate()
                validated = time.monotonic()
            if now - saved >= config.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self._validate()
        self._save()

    def _progress(self) -> float:
        if self.config.steps is not None:
            return self.step / self.config.steps
        return self.seconds / (60 * (self.config.minutes or 0))

    def codec(self) -> WallocCodec:
        """Return the codec with the averaged weights as its decoder."""
        base = self.base
        folded = build_decoder(self.config.decoder, latent_dim=base.latent_dim, out_channels=base.channels * 4**base.J)
        folded.load_state_dict({name: tensor.cpu() for name, tensor in self.average.state_dict().items()})
        with torch.no_grad():
            for layer in (folded.entry, folded.skip):
                layer.weight.div_(self.deviation.cpu()[None])
        codec = WallocCodec(
            channels=base.channels, J=base.J, latent_dim=base.latent_dim, latent_bits=base.latent_bits, decoder=folded,
        )  # fmt: skip
        codec.encoder[0].load_state_dict({"weight": self.weight.cpu(), "bias": self.bias.cpu()})
        codec.name = base.name
        return codec.eval()

    def _held_out(self) -> list[tuple[Tensor, Tensor]]:
        """Return the held-out pictures as expanded latents and pixels, on the device."""
        found = []
        for images in whole_cells((self.corpus[i][:1024, :1024] for i in self.corpus.held_out), J=self.base.J):
            v = expand(self.base.encode(images).float(), latent_bits=self.base.latent_bits)
            found.append((v.to(self.device), images.to(self.device)))
        return found

    def psnr(self, network: nn.Module, *, scaled: bool) -> float:
        """Return the mean PSNR in dB of the held-out 8-bit pictures; `scaled` latents have unit deviation."""
        decibels = []
        with torch.no_grad():
            for v, images in self.held_out:
                pictures = wavelet_synthesis(network(v / self.deviation if scaled else v).float(), self.base.J)
                error = (((pictures.clamp(-0.5, 0.5) + 0.5) * 255).round() - images.float()).square().mean()
                decibels.append(10 * math.log10(255**2 / max(float(error), 1e-3)))
        return sum(decibels) / len(decibels)

    def _validate(self) -> None:
        psnr = self.psnr(self.average, scaled=True)
        append_log(self.output, {"step": self.step, "seconds": round(self.seconds, 1), "validation_psnr_db": psnr})
        self.log(f"step {self.step}, {100 * self._progress():.0f} %: {psnr:.3f} dB on held-out pictures")

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for which, optimizer in enumerate(self.optimizers):
            for number, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{which}.{number}.{name}": tensor for name, tensor in state.items()}
        state = {"step": self.step, "seconds": self.seconds}
        Checkpoint(self.settings, state, tensors).save(self.output / ".training")

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.group("model."))
        self.average.load_state_dict(checkpoint.group("average."))
        for which, optimizer in enumerate(self.optimizers):
            stored = optimizer.state_dict()
            count = sum(len(group["params"]) for group in stored["param_groups"])
            states = {number: checkpoint.group(f"optimizer.{which}.{number}.") for number in range(count)}
            stored["state"] = {number: state for number, state in states.items() if state}
            optimizer.load_state_dict(stored)
            for group in optimizer.param_groups:
                group["lr"] = self.rate
        self.step, self.seconds = checkpoint.state["step"], checkpoint.state["seconds"]
        self.log(f"continuing at step {self.step}")
