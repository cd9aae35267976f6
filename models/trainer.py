"""Training the small models that are made here: their U-Net, and the classifier of their scores."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm, trange

from files.whole import write_atomic, write_text
from models.training import Ema, Objective, learning_rate
from models.weights import dtype_named
from sampling import Schedule

HELD_OUT_BATCH = 1000


class TrainingSet(NamedTuple):
    """Images uint8 [N, C, H, W] and labels int64 [N], on the device that trains."""

    images: Tensor
    labels: Tensor

    @staticmethod
    def of(images: NDArray[np.uint8], labels: NDArray[np.int64], device: Any) -> "TrainingSet":
        """From uint8 [N, H, W] or [N, H, W, C]."""
        x = torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2)
        return TrainingSet(x.contiguous().to(device), torch.from_numpy(labels).to(device))

    def batch(self, pick: Any) -> tuple[Tensor, Tensor]:
        """The picked images, float32 in [-1, 1], and their labels."""
        return self.images[pick].float() / 127.5 - 1, self.labels[pick]

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """`size` images at random, with replacement."""
        pick = torch.randint(len(self.images), (size,), device=self.images.device)
        return self.batch(pick)


@dataclass(frozen=True)
class Recipe:
    """How a U-Net is trained: what its weights depend on besides the images.

    AdamW with a peak learning rate `lr`, `warmup` steps of rise and half a cosine to 0 at `steps`;
    `ema` is the rate of the averaged weights.  `flip` mirrors every other image.  `loss` is one of
    `Objective`'s; `precision` that of the network's matrix products (fp32, or bf16 by autocast).
    """

    steps: int
    batch: int
    lr: float
    warmup: int
    weight_decay: float
    dropout: float
    ema: float
    flip: bool
    loss: str
    precision: str
    seed: int


@dataclass(frozen=True)
class Saving:
    """What is written while a U-Net is trained.

    `keep` are the steps whose averaged weights are kept, besides the last; `log_every` and
    `save_every` count steps.  Weights are stored in the precision `weights`.
    """

    folder: Path
    keep: tuple[int, ...]
    log_every: int
    save_every: int
    weights: str


class UNetTraining:
    """The U-Net, its optimizer, its averaged weights and how far they are, here and in `state.pt`."""

    def __init__(
        self, build: Callable[..., nn.Module], recipe: Recipe, saving: Saving, device: Any
    ):
        torch.manual_seed(recipe.seed)
        self.recipe, self.saving, self.device = recipe, saving, torch.device(device)
        net = build(dropout=recipe.dropout).to(self.device)
        if self.device.type == "cpu":  # about 8% faster there; a GPU's group norm is slower so
            net = net.to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True  # all steps have the same shapes
        self.net = net.train()
        self.step_net = net
        self.objective = Objective(Schedule.linear(), recipe.loss, self.device)
        self.optimizer = torch.optim.AdamW(
            net.parameters(),
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.ema = Ema(net, recipe.ema)
        self.step, self.started = 0, time.perf_counter()
        self.curve: list[dict[str, float]] = []

    def compile(self) -> None:
        """Let torch.compile make the training step faster; minutes pass before it does."""
        self.step_net = torch.compile(self.net)  # type: ignore[assignment]

    # --- the state on disk ------------------------------------------------------------------------

    @property
    def state_path(self) -> Path:
        return self.saving.folder / "state.pt"

    def resume(self) -> None:
        """Continue what is in the folder, if there is something.

        Raises ValueError if it was trained by another recipe; only more or fewer `steps` may be.
        """
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        for name, new in asdict(self.recipe).items():
            old = state["recipe"].get(name)
            if old != new and name != "steps":
                raise ValueError(
                    f"{self.saving.folder} holds a training with unet.{name}={old}, not {new}: "
                    "choose another out=DIR or remove it"
                )
        if state["step"] > self.recipe.steps:
            raise ValueError(
                f"{self.saving.folder} holds {state['step']} steps, more than unet.steps="
                f"{self.recipe.steps}: choose another out=DIR"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.values |= {key: value.to(self.device) for key, value in state["ema"].items()}
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step, self.curve = state["step"], state["curve"]
        self.started -= state["seconds"]
        print(f"resuming at step {self.step}")

    def save(self) -> None:
        state: dict[str, Any] = {"net": self.net.state_dict(), "ema": self.ema.values}
        state |= {"optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        state |= {"step": self.step, "curve": self.curve, "recipe": asdict(self.recipe)}
        state["seconds"] = time.perf_counter() - self.started
        write_atomic(self.state_path, lambda p: torch.save(state, p))
        write_text(self.saving.folder / "curve.json", json.dumps(self.curve))

    # --- training ---------------------------------------------------------------------------------

    def run(self, images: TrainingSet, held_out: TrainingSet, last: int) -> None:
        """Train up to step `last`, with weights and a line of the curve as `saving` says."""
        saving, total = self.saving, self.recipe.steps
        errors: list[Tensor] = []
        for _ in (bar := trange(self.step, last, initial=self.step, total=total)):
            errors.append(self.advance(*images.draw(self.recipe.batch)))
            done = self.step
            if done % saving.log_every == 0 or done == total:
                row = {"step": done, "train": torch.stack(errors).double().mean().item()}
                errors.clear()
                row["seconds"] = round(time.perf_counter() - self.started)
                row["held_out"] = self.held_out_error(held_out)
                self.curve.append(row)
                bar.set_postfix({name: f"{row[name]:.4f}" for name in ("train", "held_out")})
            if done in saving.keep or done == total:
                dtype = dtype_named(saving.weights)
                save_weights(self.ema.values, saving.folder / f"unet-{done}.safetensors", dtype)
            if done % saving.save_every == 0 or done == last:
                self.save()

    def advance(self, x0: Tensor, y: Tensor) -> Tensor:
        """One step on images [B, C, H, W] of labels [B]; the mean squared error of eps before it."""
        recipe = self.recipe
        if recipe.flip:
            mirrored = torch.rand(len(x0), device=x0.device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, recipe.steps, recipe.lr, recipe.warmup)
        loss, error = self.objective(self._predict, x0, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.step)
        self.step += 1
        return error.mean()

    def _predict(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        dtype = dtype_named(self.recipe.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            out: Tensor = self.step_net(x, t, y)
        return out.float()

    @torch.no_grad()
    def held_out_error(self, held_out: TrainingSet) -> float:
        """Mean squared eps error of the averaged weights on held-out images, always the same draws."""
        averaged = copy.deepcopy(self.net).eval()
        averaged.load_state_dict(self.ema.values)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            errors = [
                self.objective(averaged, *held_out.batch(slice(i, i + HELD_OUT_BATCH)))[1]
                for i in range(0, len(held_out.images), HELD_OUT_BATCH)
            ]
        return torch.cat(errors).mean().item()


@dataclass(frozen=True)
class ClassifierRecipe:
    """How a classifier is trained: AdamW, half a cosine from `lr` to 0, cross-entropy."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    precision: str
    seed: int


def train_classifier(
    build: Callable[[], nn.Module],
    augment: Callable[[Tensor], Tensor],
    images: TrainingSet,
    recipe: ClassifierRecipe,
) -> nn.Module:
    """A module x -> (features, logits) trained on augmented images, in eval mode."""
    torch.manual_seed(recipe.seed)
    device, dtype = images.images.device, dtype_named(recipe.precision)
    net = build().to(device)
    steps = recipe.epochs * len(images.images) // recipe.batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in (bar := trange(steps, desc="classifier")):
        x, y = images.draw(recipe.batch)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            _, logits = net(augment(x))
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, images: TrainingSet) -> float:
    """Share of images whose label has the largest logit."""
    starts = tqdm(range(0, len(images.images), HELD_OUT_BATCH), delay=3, leave=False)
    hits = [
        net(x)[1].argmax(1) == y
        for x, y in (images.batch(slice(i, i + HELD_OUT_BATCH)) for i in starts)
    ]
    return torch.cat(hits).double().mean().item()


def save_weights(
    weights: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write a .safetensors file whole; floating-point tensors in `dtype`."""
    stored = {
        key: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in weights.items()
    }
    write_atomic(path, lambda p: save_file(stored, p))
