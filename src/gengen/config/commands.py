"""The configs of the commands that read a run."""

from dataclasses import dataclass, fields
from pathlib import Path

from gengen.config.fields import choice, option, positive
from gengen.config.marks import FilterSettings, MarkSettings, WatermarkSettings
from gengen.errors import UserError


@dataclass
class RunConfig:
    """Which weights a command reads."""

    run: str | None = option(None, "run or checkpoint directory; also as the first argument")
    runs_dir: str = option("runs", "folder that holds the runs")
    checkpoint: str = option("latest", "latest, best, or the number of a step")
    weights: str | None = choice(None, ["ema", "raw"], "which weights; null = ema where the run has them")
    device: str = choice("auto", ["auto", "cpu", "cuda"], "auto = cuda if there is one")
    plugins: list[str] = option([], "your modules to import, which register your own components")


@dataclass
class SampleConfig(RunConfig):
    """What to draw from a run, whatever its family."""

    n: int = positive(1, "samples to draw, of each prompt where there are prompts")
    seed: int = option(0, "sample i is a function of seed and i alone", low=0)

    def check(self) -> None:
        """Raise UserError where fields do not go together."""


@dataclass
class DecodingSettings:
    """How the next token is drawn from a language model's logits, and when a text ends."""

    seed: int = option(0, "sample i is a function of seed and i alone", low=0)
    max_tokens: int = positive(200, "new tokens at most")
    temperature: float = option(0.8, "divides the logits; 0 takes the likeliest token", low=0)
    top_k: int | None = positive(None, "draw from the k likeliest tokens only")
    top_p: float | None = option(None, "draw from the fewest tokens that hold this much probability", above=0, high=1)
    min_p: float | None = option(None, "draw from tokens at least this much as likely as the likeliest", low=0, high=1)
    repetition_penalty: float = positive(
        1.0, "divides positive logits of tokens in the prompt or the text, multiplies negative ones"
    )
    presence_penalty: float = option(0.0, "taken from the logits of tokens in the text")
    frequency_penalty: float = option(0.0, "taken from the logits of tokens in the text, as often as they are there")
    logit_bias: list[str] = option([], "TOKEN:NUMBER, added to a token's logit; -inf forbids it; repeat for several")
    stop: list[str] = option([], 'end a sample before this text; repeat for several, or write ["a", "b"]')
    stop_ids: list[int] = option([], "end a sample before one of these tokens")
    overflow: str = choice(
        "slide", ["slide", "end"],
        "a text that fills the model's context: slide = it goes on from its last half; end = it ends there",
    )  # fmt: skip
    logprobs_of: str = choice(
        "model", ["model", "drawn"], "log-probabilities of a text's tokens: the model's own, or after all controls"
    )

    def bias(self) -> dict[int, float]:
        """logit_bias as numbers. Raises UserError."""
        try:
            return {
                int(token): float(number) for token, _, number in (entry.partition(":") for entry in self.logit_bias)
            }
        except ValueError:
            raise UserError(f"logit_bias={' '.join(self.logit_bias)}: write TOKEN:NUMBER, such as 50:-2.5") from None

    def check(self) -> None:
        """Raise UserError for a logit_bias that is none, and for a stop string that every text holds."""
        self.bias()
        if "" in self.stop:
            raise UserError("stop: every text holds the empty string")


@dataclass
class TextSampling(WatermarkSettings, FilterSettings, DecodingSettings, SampleConfig):
    """What to draw from a language model."""

    prompt: list[str] = option([], "text to go on from; repeat for several prompts in one batch", prose=True)
    precision: str = choice(
        "fp32", ["fp32", "bf16", "int8"], "of the weights; below fp32 a text depends a little on those beside it"
    )
    compile: bool = option(False, "compile the decoding step: up to a minute at first, then faster")
    exact: bool = option(True, "fp32: a text is the same whatever is drawn beside it; false: faster for a few texts")
    merge: bool = option(True, "make an adapter part of its base's weights; false: keep it beside them")
    stream: bool = option(False, "print the text while it is drawn (one sample)")
    best_of: int = positive(1, "draw so many for each sample, and keep the one that reward likes best")
    reward: list[str] = option([], "what best_of goes by: a reward run or a registered function; repeat for their sum")
    out: str | None = option(None, "also write the samples to this .jsonl file")
    json_schema: str | None = option(None, "each text obeys the JSON schema in this file")
    json: bool = option(False, "each text is a JSON object")
    regex: str | None = option(None, "each text as a whole matches this expression, in Rust's syntax")
    choice: list[str] = option([], "each text is one of these; repeat for several", prose=True)
    lark: str | None = option(None, "each text obeys the Lark grammar in this file")

    def check(self) -> None:
        super().check()
        given = [key for key in ("json_schema", "json", "regex", "choice", "lark") if getattr(self, key)]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: one of them says what a text must obey")
        for key in ("json_schema", "lark"):
            if (path := getattr(self, key)) and not Path(path).is_file():
                raise UserError(f"{key}={path}: no such file")
        if bool(self.reward) != (self.best_of > 1):
            raise UserError(
                "best_of=N and reward=NAME go together: of N samples the one with the highest reward is kept"
            )
        if self.reward and self.stream:
            raise UserError(
                "stream=true shows a sample while it is drawn; best_of keeps one of several that are whole"
            )
        if self.out and not Path(self.out).parent.is_dir():
            raise UserError(f"out={self.out}: no such folder {Path(self.out).parent}")
        if self.stream and (self.out or self.n * max(1, len(self.prompt)) > 1):
            raise UserError("stream=true draws one sample to the screen: one prompt, n=1 and no out")


LABELS = "classes to draw, by name (or number, if no name is one), commas between; taken in turn. None: all in turn"


@dataclass
class PictureSampling(MarkSettings, SampleConfig):
    """What to write of sampled images."""

    n: int = positive(16, "images to draw")
    out: str | None = option(
        None,
        "folder for grid.png, single files and samples.json; null = samples/sample-SEED of the run (edit-SEED, ...)",
    )

    def folder(self, name: str = "sample") -> Path:
        """Where the images go. name: what the folder in the run is called, before the seed."""
        if self.out:
            return Path(self.out)
        path = Path(str(self.run)) if Path(str(self.run)).exists() else Path(self.runs_dir) / str(self.run)
        run = path.parent.parent if path.parent.name == "checkpoints" else path
        return run / "samples" / f"{name}-{self.seed}"


@dataclass
class DiffusionSettings:
    """How a diffusion model is sampled."""

    sampler: str = choice(
        "heun", ["heun", "dpmpp_2m", "ddim", "ancestral"], "diffusion: how noise is turned into an image"
    )
    steps: int = positive(20, "diffusion: steps of the sampler; heun calls the network twice a step")
    guidance: float | None = option(
        None,
        "diffusion: 1 = off; above, away from the estimate without class or prompt (or from guide's); "
        "null = 2, or 1 for a model that always saw its class or caption (model.drop_condition=0)",
        low=0,
    )
    guide_from: float = option(
        0.0, "guide only where the share of noise, sigma / (alpha + sigma), is at least this", low=0, high=1
    )
    guide_to: float = option(1.0, "and at most this", low=0, high=1)
    rescale: float = option(
        0.0, "share by which a guided estimate is brought back to the unguided one's spread", low=0, high=1
    )
    guide: str | None = option(
        None, "run or checkpoint of a smaller or earlier model to guide away from (autoguidance)"
    )
    precision: str = choice(
        "fp32", ["fp32", "bf16"], "bf16 draws faster; an image then depends a little on those beside it"
    )
    batch_size: int = positive(64, "images drawn at once; in fp32 changes none of them")


@dataclass
class PromptSettings:
    """What a diffusion model that reads captions is to show."""

    prompt: list[str] = option(
        [], "what to show; repeat for several: n of each, a row each in the grid, from the same noise", prose=True
    )
    negative: str = option("", "a text that guidance leads away from, in place of none")
    pictures: int = option(8, "what=remix: pictures on the way from one prompt to the other, ends included", low=2)
    guidances: list[float] = option(
        [1.0, 2.0, 4.0, 8.0], "what=guidance: the scales, a column each, such as 1,2,4,8", low=0
    )


EDITS = ("edit", "outpaint", "variations")
"""What `sample` does with a picture that is there, by a diffusion model."""


@dataclass
class EditSettings:
    """Which picture to change, and how much of it."""

    image: str | None = option(None, "edit, outpaint, variations: the picture, a file; its centre square is taken")
    mask: str | None = option(
        None,
        "edit: what to draw anew: a picture as large as the image, white where it is open; left, right, top, bottom, "
        "center; or a box x0,y0,x1,y1 in pixels of the image. null = all of it, by strength",
    )
    strength: float | None = option(
        None,
        "share of the way to noise that an edit starts from: the more, the less is left of the picture; "
        "null = 0.7, or 1 with a mask and for outpaint",
        above=0,
        high=1,
    )
    resamples: int | None = positive(
        None,
        "rounds of each step behind a mask: the more, the better what is drawn fits, and the longer it takes; "
        "null = 10, none for a model that is trained for it (model.inpaint=true)",
    )
    left: int = option(0, "outpaint: pixels to add on the left", low=0)
    right: int = option(0, "outpaint: pixels to add on the right", low=0)
    top: int = option(0, "outpaint: pixels to add above", low=0)
    bottom: int = option(0, "outpaint: pixels to add below", low=0)

    def check_edit(self, what: str) -> None:
        """Raise UserError for fields that `what` does not read, and for an edit of nothing."""
        sides = ("left", "right", "top", "bottom")
        reads = {
            "edit": {"image", "mask", "strength", "resamples"},
            "outpaint": {"image", "strength", "resamples", *sides},
            "variations": {"image", "strength"},
        }
        for f in fields(EditSettings):
            if getattr(self, f.name) and f.name not in reads.get(what, ()):
                which = " and ".join(f"what={name}" for name in reads if f.name in reads[name])
                raise UserError(f"{f.name}={getattr(self, f.name)} is for {which}, not for what={what}")
        if what in EDITS and not self.image:
            raise UserError(f"what={what} changes a picture: image=FILE says which")
        if what == "outpaint" and not any(getattr(self, side) for side in sides):
            raise UserError("what=outpaint: left=, right=, top=, bottom= say how many pixels to add")


@dataclass
class DiffusionSampling(EditSettings, DiffusionSettings, PromptSettings, PictureSampling):
    """What to draw from a diffusion model."""

    labels: list[str] = option([], LABELS)
    what: str = choice(
        "images", ["images", "remix", "guidance", *EDITS],
        "images; n ways from one prompt to another, and remix.gif; each image at several scales of guidance; "
        "or a picture drawn anew in part, carried on beyond its edges, or varied",
    )  # fmt: skip
    animation: bool = option(
        True, "also write denoising.gif, the estimate of the images after each step, or remix.gif"
    )
    best_of: int = positive(1, "draw so many for each image, and keep the one that reward likes best")
    reward: str | None = option(None, "what best_of goes by: follows_prompt, or a reward of pictures of your own")

    def folder(self, name: str = "sample") -> Path:
        return super().folder(self.what if self.what in EDITS else name)

    def check(self) -> None:
        super().check()
        self.check_edit(self.what)
        if bool(self.reward) != (self.best_of > 1):
            raise UserError(
                "best_of=N and reward=NAME go together: of N images the one with the highest reward is kept"
            )
        if self.reward and self.what != "images":
            raise UserError(f"best_of keeps one of several images: leave out what={self.what}")
        if self.what == "remix" and len(self.prompt) != 2:
            raise UserError(
                f"what=remix takes two prompts, not {len(self.prompt)}: "
                'prompt="a red heart" prompt="a blue circle" pictures=8'
            )
        if self.what == "guidance" and (self.guidance is not None or not self.guidances):
            raise UserError("what=guidance takes its scales from guidances=1,2,4,8; leave guidance out")


@dataclass
class AutoencoderSampling(PictureSampling):
    """What to draw from an autoencoder."""

    n: int = positive(16, "images to draw; paths to draw between images; channels to traverse")
    what: str = choice(
        "prior", ["prior", "interpolation", "traversal", "reconstruction"],
        "decoded draws from the prior; paths between two; a draw with one channel at a time moved; "
        "or images beside their reconstructions",
    )  # fmt: skip
    images: list[str] = option(
        [], "files to reconstruct, to go between (two) or to traverse (one); repeat for several"
    )
    steps: int = option(8, "pictures on a path or along a channel", low=2)

    def check(self) -> None:
        wanted = {"prior": (0, 0), "interpolation": (0, 2), "traversal": (0, 1), "reconstruction": (1, None)}[
            self.what
        ]
        if not (len(self.images) in wanted or (wanted[1] is None and self.images)):
            raise UserError(
                f"what={self.what} takes {' or '.join(map(str, wanted))} images=FILE, not {len(self.images)}"
            )


@dataclass
class GANSampling(PictureSampling):
    """What to draw from a GAN."""

    n: int = positive(16, "images to draw, or paths to draw between images")
    labels: list[str] = option([], LABELS)
    truncation: float = positive(
        1.0, "factor on z: below 1, images nearer to the average one, fewer odd ones and less variety"
    )
    what: str = choice(
        "images", ["images", "interpolation"], "images; or paths between two each, a row a path, and interpolation.gif"
    )
    steps: int = option(8, "pictures on a path", low=2)


@dataclass
class TextEvaluation(DecodingSettings, RunConfig):
    """What to measure of a run of text."""

    samples: int = option(32, "texts to draw, from their beginning, and judge; 0 = none", low=0)
    seed: int = option(0, "text i is a function of seed and i alone", low=0)


@dataclass
class EvaluateConfig(DiffusionSettings, RunConfig):
    """What to measure of a run of images."""

    samples: int = option(1000, "images to draw and judge; 0 = none", low=0)
    seed: int = option(0, "image i is a function of seed and i alone", low=0)
    prompts: int = option(
        240, "captions to draw of a run of text, half of new combinations, and judge; 0 = none", low=0
    )
    efficientnet: bool = option(False, "also measure fd_efflite0, in the features of a network trained on photographs")


@dataclass
class ImportConfig:
    """A new run from weights in the Hugging Face layout."""

    folder: str | None = option(
        None, "folder with config.json, model.safetensors and tokenizer.json; also as the first argument"
    )
    run: str | None = option(None, "name of the new run")
    base: str | None = option(None, "of an adapter in PEFT's layout: the run or checkpoint that it adapts")
    runs_dir: str = option("runs", "folder that holds the runs")

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter in PEFT's layout."""
        return (Path(str(self.folder)) / "adapter_config.json").is_file()

    def check(self) -> None:
        if not self.folder or not self.run:
            raise UserError(
                "which weights, and what is the run to be called? python scripts/import_weights.py FOLDER run=NAME"
            )
        if self.is_adapter != bool(self.base):
            found = "an adapter" if self.is_adapter else "a model, not an adapter"
            raise UserError(f"{self.folder} holds {found}: base=RUN is the run of what an adapter adapts")
        if not self.is_adapter and not (Path(self.folder) / "config.json").is_file():
            raise UserError(f"{self.folder} holds no model: there is no config.json in it")


@dataclass
class ExportConfig(RunConfig):
    """A run's weights as other libraries read them."""

    to: str = choice("hf", ["hf", "peft"], "a folder that transformers loads; or the adapter alone, as PEFT loads it")
    out: str | None = option(None, "the folder to write, new or empty")
    dtype: str = choice("fp32", ["fp32", "bf16", "fp16"], "of the written weights")

    def check(self) -> None:
        if not self.out:
            raise UserError("where to? python scripts/export.py runs/NAME to=hf out=FOLDER")
        if Path(self.out).exists() and not (Path(self.out).is_dir() and not any(Path(self.out).iterdir())):
            raise UserError(f"out={self.out} exists and is not an empty folder; nothing is overwritten")
        if not Path(self.out).absolute().parent.is_dir():
            raise UserError(f"out={self.out}: no such folder {Path(self.out).parent}")


@dataclass
class PairsConfig(RunConfig):
    """Preferences from a policy's own answers."""

    out: str | None = option(None, "the .jsonl file to write: prompt, chosen, rejected")
    prompts: str | None = option(None, ".jsonl of prompts; null = those of storygen")
    max_prompts: int | None = positive(None, "prompts to take at most; null = all")
    reward: list[str] = option(
        [], "labels by sigmoid of its gap: a reward run or a registered function; repeat for their sum; none = gold"
    )
    n: int = option(2, "answers to a prompt; two make a pair", low=2)
    temperature: float = positive(1.0, "divides the logits")
    max_tokens: int = positive(64, "tokens of an answer at most")
    seed: int = option(0, "answer i is a function of seed and i alone, and so is each label", low=0)

    def check(self) -> None:
        if not self.out or not Path(self.out).absolute().parent.is_dir():
            raise UserError(
                f"out={self.out}: name a file in a folder that exists: python scripts/pairs.py runs/SFT out=FILE.jsonl"
            )
        if self.n % 2:
            raise UserError(f"n={self.n}: answers are taken two by two")
        if self.prompts and not self.reward:
            raise UserError(
                "prompts of your own need reward=runs/RM or the name of a registered reward: "
                "gold is for storygen alone"
            )


@dataclass
class DoctorConfig:
    """What is wrong with a run or a checkpoint, and what to do about it. Changes nothing; exit 1 if something is
    wrong.
    """

    run: str | None = option(None, "run or checkpoint directory; also as the first argument")
    runs_dir: str = option("runs", "folder that holds the runs")
    plugins: list[str] = option([], "your modules to import, which register your own components")
