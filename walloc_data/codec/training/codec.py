"""Training of a codec: the linear encoder and a small decoder together, from a Karhunen-Loeve start.

The loss of a batch of crops is the mean over crops of log(squared pixel error + 25), in units of 1/255, plus a weight
times the estimated bits per latent value (`walloc_data.codec.training.rate_model`). The logarithm is what PSNR averages
over pictures; the constant keeps flat crops from dominating the mean. While the encoder learns, quantisation is
additive uniform noise (Balle et al., arXiv 1611.01704). Then the encoder is frozen at its running mean, so that latents
are final, and the decoder finishes on rounded latents. The learning rate falls to zero along a cosine, and the result
is the exponential moving average of the weights.

    OUTPUT/log.jsonl, OUTPUT/rd.png              the course of the training
    OUTPUT/.training/pictures.u8              the decoded pictures
    OUTPUT/.training/checkpoint.safetensors   the state for an exact resume
    OUTPUT/codec.json, model.safetensors, README.md      the codec, at the end; .training is then deleted
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from walloc_data.codec.checkpoints import load_codec, save_codec
from walloc_data.codec.decoders import build_decoder
from walloc_data.codec.model import WallocCodec
from walloc_data.codec.training.channel_order import arrange_channels
from walloc_data.codec.training.closed_form import centred, fit_klt, fit_linear_decoder, latent_statistics, whole_cells
from walloc_data.codec.training.config import TrainConfig, TrainResult
from walloc_data.codec.training.picture_sets import Corpus, PictureSet
from walloc_data.codec.training.rate_model import estimated_bits, measured_bytes
from walloc_data.codec.training.state import Checkpoint, append_log, draw_log, model_card, open_run
from walloc_data.codec.wavelets import wavelet_analysis, wavelet_synthesis
from walloc_data.deprecated import renamed_arguments
from walloc_data.devices import usable_device
from walloc_data.errors import CodecError
from walloc_data.latents import compand, expand

__all__ = ["TrainConfig", "TrainResult", "train_codec"]

_LATENT_BITS = 8
_LOG_OFFSET = 25.0  # squared error, in units of 1/255, below which a crop is good enough: 34 dB
_MAX_FIT_PICTURES = 400  # for closed forms and statistics
_MAX_ARRANGE_PICTURES = 32
_TIMED_STEPS = 20  # that tell how many steps fit in the minutes given
_ENCODER_SPEED = 3.0  # its entries are about ten times as large as the decoder's


@renamed_arguments(out="output", say="log")
def train_codec(
    pictures: Sequence[PictureSet],
    output: str | Path,
    *,
    config: TrainConfig,
    resume: bool = True,
    log: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train a codec and write it as a folder that `load_codec` reads.

    Args:
        pictures: the training pictures; they are read once, at the start of a new run.
        output: folder of the codec; an interrupted run resumes there.
        config: the settings.
        resume: False starts again.
        log: takes lines of progress.

    Raises:
        SettingsMismatchError: a run was begun in `output` with other settings.
        CodecError: `output` holds a finished codec, or the pictures cannot be used.

    Example:
        >>> from walloc_data.codec import PictureSet, TrainConfig, load_codec, read_pictures, train_codec
        >>> config = TrainConfig(name="mine", closed_form=True, arrange=False)  # or minutes=60, for a better one
        >>> result = train_codec([PictureSet("mine", read_pictures("pictures"))], "my-codec", config=config)
        >>> codec, info = load_codec("my-codec")
        >>> info.name, info.decoder, result.held_out_pictures
        ('mine', 'linear', 1)
    """
    output, log = Path(output), log or (lambda line: None)
    if (output / "codec.json").exists():
        raise CodecError(f"{output} already holds a codec: choose another folder, or delete it")
    corpus, checkpoint = open_run(output, pictures, config.to_dict(), resume=resume, log=log)
    if config.closed_form:
        steps, codec = 0, _klt_codec(corpus, config)
    else:
        trainer = _Trainer(corpus, config, checkpoint, output=output, log=log)
        steps, codec = trainer.run(), trainer.codec()
    result = _finish(codec, corpus, config, output=output, steps=steps, log=log)
    shutil.rmtree(output / ".training")
    return result


def _klt_codec(corpus: Corpus, config: TrainConfig) -> WallocCodec:
    weight, mean = fit_klt(_fit_pictures(corpus, config), J=config.J, latent_dim=config.latent_dim)
    codec = WallocCodec(J=config.J, latent_dim=config.latent_dim, latent_bits=_LATENT_BITS)
    scale = config.initial_scale
    if config.closed_form and config.target_bpp is not None:
        # A bit more in every value doubles the scale: bytes grow with its logarithm, and bisection finds it.
        low, high = scale / 64, scale * 64
        for _ in range(14):
            scale = math.sqrt(low * high)
            _set_encoder(codec, weight * scale, -(weight @ mean) * scale)
            low, high = (low, scale) if _held_out_bpp(codec, corpus) > config.target_bpp else (scale, high)
        scale = low
    _set_encoder(codec, weight * scale, -(weight @ mean) * scale)
    linear = fit_linear_decoder(codec, _fit_pictures(corpus, config))
    codec.decoder[1].load_state_dict(linear.state_dict())
    return codec.eval()


def _set_encoder(codec: WallocCodec, weight: Tensor, bias: Tensor) -> None:
    codec.encoder[0].load_state_dict({"weight": weight[:, :, None, None].float(), "bias": bias.float()})


def _fit_pictures(corpus: Corpus, config: TrainConfig) -> Iterator[Any]:
    return (corpus[i] for i in corpus.training_pictures(limit=_MAX_FIT_PICTURES, seed=config.seed))


def _held_out(corpus: Corpus, *, J: int) -> Iterator[Tensor]:
    return whole_cells((corpus[i][:1024, :1024] for i in corpus.held_out), J=J)


def _held_out_bpp(codec: WallocCodec, corpus: Corpus) -> float:
    rates = [
        8 * measured_bytes(codec.encode(images), colours=3) / (images.shape[2] * images.shape[3])
        for images in _held_out(corpus, J=codec.J)
    ]
    return sum(rates) / len(rates)


def _evaluate(codec: WallocCodec, corpus: Corpus, *, linear: bool = False) -> tuple[float, float]:
    """Return the means of (bits per pixel as WebP, PSNR in dB of 8-bit pixels) over the held-out pictures."""
    rates, decibels = [], []
    for images in _held_out(corpus, J=codec.J):
        latent = codec.encode(images)
        decoded = ((codec.decode(latent, linear=linear).cpu() + 0.5) * 255).round()
        error = float((decoded - images.float()).square().mean())
        rates.append(8 * measured_bytes(latent, colours=3) / (images.shape[2] * images.shape[3]))
        decibels.append(10 * math.log10(255**2 / max(error, 1e-3)))
    return sum(rates) / len(rates), sum(decibels) / len(decibels)


def _finish(
    codec: WallocCodec, corpus: Corpus, config: TrainConfig, *, output: Path, steps: int, log: Callable[[str], None]
) -> TrainResult:
    """Write the folder, read it back, and measure what was read."""
    codec = codec.cpu().eval()
    if config.arrange:
        sample = corpus.training_pictures(limit=_MAX_ARRANGE_PICTURES, seed=config.seed)
        arrange_channels(codec, (corpus[i][:512, :768] for i in sample), log=log)
    if codec.linear_decoder is None:
        codec._linear_decoder = fit_linear_decoder(codec, _fit_pictures(corpus, config))
    codec.statistics = latent_statistics(codec, _fit_pictures(corpus, config))
    partial = output / ".training" / "codec"
    save_codec(codec, partial, name=config.name, decoder_dtype=torch.float16)
    written, info = load_codec(partial)
    bpp, psnr = _evaluate(written, corpus)
    linear = _evaluate(written, corpus, linear=True)[1]
    result = TrainResult(
        str(output), config.name, steps, round(bpp, 4), round(psnr, 3), round(linear, 3), len(corpus.held_out)
    )
    card = model_card(info, config.to_dict(), corpus=corpus, result=result.to_dict())
    if (output / "log.jsonl").exists():
        draw_log(output / "log.jsonl", output / "rd.png")
    save_codec(codec, output, name=config.name, decoder_dtype=torch.float16, card=card)
    return result


class _EncoderDecoder(nn.Module):
    """Trainable encoder and decoder."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        bands = 3 * 4**config.J
        description = {"width": config.decoder_width, "blocks": config.decoder_blocks, "groups": config.decoder_groups}
        self.encoder = nn.Conv2d(bands, config.latent_dim, 1)
        self.decoder = build_decoder(description, latent_dim=config.latent_dim, out_channels=bands)


class _Trainer:
    """Training loop and its state."""

    def __init__(
        self,
        corpus: Corpus,
        config: TrainConfig,
        checkpoint: Checkpoint | None,
        *,
        output: Path,
        log: Callable[[str], None],
    ) -> None:
        self.corpus, self.config, self.output, self.log = corpus, config, output, log
        self.device = usable_device(config.device)
        height, width = config.crop_px
        self.sampler = corpus.sampler(height_px=height, width_px=width, enlarged=config.enlarged)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = _EncoderDecoder(config)
        # The decoder learns on latents of unit deviation; `codec` folds this into its first layers.
        self.deviation = torch.ones(config.latent_dim)
        if checkpoint is None:
            self._start_from_klt()
        self.model.to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.model.decoder.parameters()), "speed": 1.0},
                {"params": list(self.model.encoder.parameters()), "speed": _ENCODER_SPEED},
            ],
            lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0,
        )  # fmt: skip
        self.step, self.total_steps, self.seconds = 0, config.steps or 0, 0.0
        self.log_weight = math.log(max(config.rate_weight, 1e-9))
        self.mean_bpp = config.target_bpp or 0.0
        self.frozen = False
        if checkpoint is not None:
            self._restore(checkpoint)

    def _start_from_klt(self) -> None:
        encoder, decoder = self.model.encoder, self.model.decoder
        klt = _klt_codec(self.corpus, self.config)
        encoder.load_state_dict(klt.encoder[0].state_dict())
        statistics = latent_statistics(klt, _fit_pictures(self.corpus, self.config))
        # Integers are 1.49 times v near zero: close enough for a scale.
        self.deviation = torch.tensor(statistics[1]).clamp(min=1.0) / 1.486
        linear = klt.decoder[1].state_dict()
        with torch.no_grad():
            scaled = linear["weight"] * self.deviation[None, :, None, None]
            decoder.skip.load_state_dict({"weight": scaled, "bias": linear["bias"]})
            # Every block starts close to the identity, and the decoder as the linear one.
            for parameter in decoder.exit.parameters():
                parameter.zero_()
            for name, parameter in decoder.named_parameters():
                if name.endswith("mix.weight"):
                    parameter.mul_(0.3)

    def run(self) -> int:
        """Train to the end; returns the number of steps."""
        config = self.config
        started, saved, validated = time.monotonic() - self.seconds, time.monotonic(), time.monotonic()
        timed_step, timed = self.step, self.seconds
        while not self.total_steps or self.step < self.total_steps:
            losses = self._train_step()
            self.step += 1
            self.seconds = time.monotonic() - started
            if not self.total_steps:
                if self.step == _TIMED_STEPS // 2:
                    timed_step, timed = self.step, self.seconds
                elif self.step >= _TIMED_STEPS:
                    # Fixed once, so that the schedule is a function of the step alone.
                    per_step = (self.seconds - timed) / (self.step - timed_step)
                    self.total_steps = max(self.step + 1, round((config.minutes or 0) * 60 / per_step))
            if self.step % 100 == 0:
                append_log(self.output, {"step": self.step, "seconds": round(self.seconds, 1), **losses})
            now = time.monotonic()
            if now - validated >= config.validate_seconds:
                self._validate()
                validated = time.monotonic()
            if now - saved >= config.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self._validate()
        self._save()
        return self.step

    def _progress(self) -> float:
        return self.step / self.total_steps if self.total_steps else 0.0

    def _train_step(self) -> dict[str, float]:
        config, encoder, decoder = self.config, self.model.encoder, self.model.decoder
        done = self._progress()
        if done >= config.frozen_from and not self.frozen:
            self.frozen = True
            encoder.load_state_dict(self.average.encoder.state_dict())
        # While the number of steps is not known yet, they count as many: the rate must not rise and fall again.
        warm = min(1.0, (self.step + 1) / min(200, max(1, (self.total_steps or 2000) // 10)))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * group["speed"] * warm * 0.5 * (1 + math.cos(math.pi * done))
        crops = torch.from_numpy(self.sampler.batch(config.batch_size, seed=config.seed, step=self.step))
        X = wavelet_analysis(centred(crops.to(self.device).permute(0, 3, 1, 2)), config.J)
        with torch.set_grad_enabled(not self.frozen):
            u = compand(encoder(X), latent_bits=_LATENT_BITS)
        weight, bpp = 0.0, 0.0
        if self.frozen:
            quantised, rate = u.round(), torch.zeros((), device=self.device)
        else:
            generator = torch.Generator(self.device).manual_seed(config.seed * 1_000_003 + self.step)
            quantised = u + torch.rand(u.shape, generator=generator, device=self.device) - 0.5
            rate = estimated_bits(quantised, colours=3)
            bpp = rate.item() * config.latent_dim / 4**config.J
            weight = self._rate_weight(bpp)
        v = expand(quantised, latent_bits=_LATENT_BITS) / self.deviation.to(self.device)[:, None, None]
        with torch.autocast(self.device.type, torch.bfloat16):
            X_hat = decoder(v)
        # Synthesis is linear: the pixels' error is the synthesis of the coefficients' error.
        error = wavelet_synthesis(X - X_hat.float(), config.J) * 255
        squared = error.square().mean((1, 2, 3))
        loss = (squared + _LOG_OFFSET).log().mean() + weight * rate
        if not math.isfinite(value := loss.item()):
            raise CodecError(f"{self.output}: the loss became {value} at step {self.step}; lower the learning_rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        decay = min(config.ema_decay, (2 + self.step) / (11 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        return {"loss": value, "squared_error": squared.mean().item(), "estimated_bpp": bpp, "rate_weight": weight}

    def _rate_weight(self, bpp: float) -> float:
        target = self.config.target_bpp
        if target is None:
            return self.config.rate_weight
        # A proportional-integral controller on the logarithm of the weight.
        self.mean_bpp += 0.02 * (bpp - self.mean_bpp)
        excess = self.mean_bpp / target - 1
        self.log_weight = min(0.0, max(-5.5, self.log_weight + 0.02 * excess))
        return math.exp(self.log_weight + 10 * max(-0.1, min(0.1, excess)))

    def codec(self) -> WallocCodec:
        """Return the averaged weights as a codec."""
        config, decoder = self.config, self.average.decoder
        folded = build_decoder(decoder.config, latent_dim=config.latent_dim, out_channels=3 * 4**config.J)
        folded.load_state_dict(decoder.state_dict())
        with torch.no_grad():
            for layer in (folded.entry, folded.skip):
                layer.weight.div_(self.deviation[None, :, None, None])
        codec = WallocCodec(J=config.J, latent_dim=config.latent_dim, latent_bits=_LATENT_BITS, decoder=folded)
        codec.encoder[0].load_state_dict(self.average.encoder.state_dict())
        return codec.eval()

    def _validate(self) -> None:
        bpp, psnr = _evaluate(self.codec(), self.corpus)
        append_log(
            self.output,
            {"step": self.step, "seconds": round(self.seconds, 1), "validation_bpp": bpp, "validation_psnr_db": psnr},
        )
        left = self.seconds / max(1, self.step) * max(0, self.total_steps - self.step)
        self.log(
            f"step {self.step} of {self.total_steps}: {psnr:.2f} dB at {bpp:.3f} bpp on held-out pictures, "
            f"{self.seconds / 60:.1f} min, {left / 60:.0f} min left"
        )

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        tensors["deviation"] = self.deviation
        state = {
            "step": self.step, "total_steps": self.total_steps, "seconds": self.seconds, "frozen": self.frozen,
            "log_weight": self.log_weight, "mean_bpp": self.mean_bpp,
        }  # fmt: skip
        Checkpoint(self.config.to_dict(), state, tensors).save(self.output / ".training")

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, tensors = checkpoint.state, checkpoint.tensors
        self.model.load_state_dict(checkpoint.group("model."))
        self.average.load_state_dict(checkpoint.group("average."))
        self.deviation = tensors["deviation"]
        stored = self.optimizer.state_dict()
        stored["state"] = {
            number: checkpoint.group(f"optimizer.{number}.")
            for number in range(sum(len(group["params"]) for group in stored["param_groups"]))
        }
        self.optimizer.load_state_dict(stored)
        self.step, self.total_steps, self.seconds = state["step"], state["total_steps"], state["seconds"]
        self.log_weight, self.mean_bpp, self.frozen = state["log_weight"], state["mean_bpp"], state["frozen"]
        self.log(f"continuing at step {self.step} of {self.total_steps}")
