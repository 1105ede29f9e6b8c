"""Pictures in training and texts in decoding on a GPU, beside diffusers' UNet and transformers' `generate`.

Arguments and rehearsal: rows.py. Pictures are random and lie in the host's memory, as a loader leaves them. Ours are
trained by the whole of our machinery (draws, clipping, EMA, finite check), diffusers' UNet2DModel of the same widths
by a plain loop, compiled, in bf16 and channels-last. Texts have 16 tokens of prompt and 256 new ones, drawn at
temperature 1 from the 50 likeliest, from the same Llama on both sides, whose logits are compared first.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from rows import TINY, Asked, Figures, Pace, Rows, ceilings, loop, read_arguments, train
from torch import Tensor

from gengen.config.compose import compose_train, read_command_line
from gengen.training.build import build_objective, compile_where_it_pays

Shape = tuple[int, int]
"""Channels and pixels a side."""


class Pictures:
    """Prepared data of the right shape: one batch of random pictures, or of latents, always the same."""

    def __init__(self, batch: int, shape: Shape, latents: bool):
        channels, side = shape
        images = torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.rows: dict[str, Tensor] = (
            {"mean": images, "std": torch.ones_like(images)} if latents else {"images": images}
        )
        self.rows["labels"] = torch.zeros(batch, dtype=torch.long)
        self.dependencies = {"codec": "none"} if latents else dict[str, Any]()
        self.val = range(100)  # as many as a GAN's evaluation needs, which is not called

    def steps(self) -> Iterator[dict[str, Tensor]]:
        pinned = {name: x.pin_memory() if torch.cuda.is_available() else x for name, x in self.rows.items()}
        while True:
            yield dict(pinned)


def ours(asked: Asked, model: str, batch: int, shape: Shape, pace: Pace, *settings: str) -> Figures:
    compiled = f"trainer.compile={str(asked.compiled).lower()}"
    line = [f"model={model}", "data=cifar10", f"data.batch_size={batch}", f"trainer.device={asked.device}", compiled]
    config = compose_train(read_command_line([*line, "trainer.precision=bf16", "trainer.max_steps=1000", *settings]))
    facts: dict[str, Any] = {"channels": shape[0], "resolution": shape[1], "classes": [str(i) for i in range(10)]}
    facts |= {"sigma_data": 0.5} if hasattr(config.model, "sigma_data") else {}
    config = replace(config, model=replace(config.model.resolved(), **facts))
    pictures = Pictures(batch, shape, latents=model == "ldm")
    objective = build_objective(config, pictures)  # type: ignore[arg-type]
    compile_where_it_pays(objective, config, print)
    return train(config, objective, pace, train_dataloaders=pictures.steps()).stopwatch.figures("images", batch)


def theirs(asked: Asked, width: int, batch: int, shape: Shape, pace: Pace) -> Figures:
    from unet import theirs as build

    device = torch.device(asked.device)
    net = build(True, width, size=shape[1], channels=shape[0]).to(device)
    network = torch.compile(net) if asked.compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    batches = Pictures(batch, shape, latents=False).steps()

    def step() -> None:
        images = next(batches)["images"].to(device, memory_format=torch.channels_last, non_blocking=True)
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (batch,), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.nn.functional.mse_loss(network(images + noise, t).sample.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return loop(step, pace, device).figures("images", batch)


class Decoding:
    """One Llama, in our modules and in transformers'."""

    def __init__(self, asked: Asked, sizes: tuple[int, ...]):
        import decoding

        # several compiled models share one class, and with it one count
        torch._dynamo.config.recompile_limit = 64  # type: ignore[attr-defined]
        self.asked, self.decoding = asked, decoding
        self.net = decoding.llama(*sizes)
        self.model = decoding.ours(self.net)
        decoding.check_same(self.net, self.model)
        for network in (self.net, self.model):
            network.to(asked.device)
        self.tokens, self.rounds = asked.pick((256, 3), (2, 1))

    def speeds(self, draw: Any, samples: int) -> Figures:
        """Return tokens a second; the first call, which compiles, by itself."""
        first = samples * self.tokens / self.decoding.speed(draw, samples, self.tokens)
        found = [self.decoding.speed(draw, samples, self.tokens) for _ in range(self.rounds)]
        middle, least, most = (round(f(found), 1) for f in (median, min, max))
        return {
            "unit": "tokens/s",
            "median": middle,
            "least": least,
            "most": most,
            "first_call_seconds": round(first, 2),
        }

    def ours(self, precision: str, compiled: bool, samples: int) -> Figures:
        batch = max(64, samples)
        return self.speeds(self.decoding.our_drawer(self.model, precision, compiled, batch_size=batch), samples)

    def theirs(self, kind: str, samples: int) -> Figures:
        return self.speeds(self.decoding.hf_drawer(self.net, torch.bfloat16, cache=kind), samples)


def decode(rows: Rows, name: str, llama: Callable[[], Decoding], batches: tuple[int, ...]) -> None:
    """Measure the ways of one model, the headline of each batch first."""
    asked = rows.asked
    for n in batches:
        at = f"{name}, {n} at once"
        rows.measure(f"decode {at}, bf16, compiled", lambda n=n: llama().ours("bf16", asked.compiled, n))
        rows.measure(f"generate {at}, bf16", lambda n=n: llama().theirs("dynamic", n))
        rows.ratio(f"decode / generate, {at}", f"decode {at}, bf16, compiled", f"generate {at}, bf16")
        if n == 1:
            rows.measure(f"generate {at}, bf16, static", lambda n=n: llama().theirs("static", n))
            rows.ratio(
                f"decode / static generate, {at}", f"decode {at}, bf16, compiled", f"generate {at}, bf16, static"
            )
            rows.measure(f"decode {at}, bf16, eager", lambda n=n: llama().ours("bf16", False, n))
        rows.measure(f"decode {at}, int8, compiled", lambda n=n: llama().ours("int8", asked.compiled, n))


LLAMAS = {  # of full size, and what stands for it in a rehearsal; the vocabulary is a multiple of 64
    "124M": ((12, 768, 12, 2048, 50_304, 1024), (1, 32, 2, 32, 128, 64)),
    "large": ((36, 1280, 20, 3456, 50_304, 1024), (2, 32, 2, 32, 128, 64)),
}
"""Layers, width, heads, width within the MLP, vocabulary, context."""


def main(asked: Asked) -> None:
    rows, pace = Rows(asked), asked.pick(Pace(), TINY)
    rows.measure("ceilings", lambda: ceilings(torch.device(asked.device), *asked.pick((8192, 4096), (128, 1))))
    width, batch = asked.pick((128, 512), (32, 2))
    layout = ["model.size=mini", f"model.widths=[{width},{2 * width},{2 * width}]"]

    def unets(side: int, images: int) -> None:
        shape = (3, asked.pick(side, side // 4))
        rows.measure(f"unet {side}", partial(ours, asked, "unet", images, shape, pace, *layout))
        rows.measure(f"diffusers {side}", partial(theirs, asked, width, images, shape, pace))
        rows.ratio(f"unet / diffusers, {side}", f"unet {side}", f"diffusers {side}")

    def texts(name: str, at_once: tuple[int, ...]) -> None:
        decode(rows, name, cache(partial(Decoding, asked, asked.pick(*LLAMAS[name]))), at_once)

    unets(32, batch)
    texts("124M", asked.pick((1, 32, 256), (1, 2)))
    unets(64, asked.pick(128, 2))
    rows.measure("ldm 4x32x32", partial(ours, asked, "ldm", batch, (4, asked.pick(32, 8)), pace, *layout))
    rows.measure("gan 3x32x32", partial(ours, asked, "gan", batch, (3, 32), pace))
    rows.measure("vae 3x32x32", partial(ours, asked, "vae", batch, (3, 32), pace))
    texts("large", (1,))
    rows.close()


if __name__ == "__main__":
    main(read_arguments())
