"""The vocabulary: every YAML composes, every mistake is answered, text arrives as it was typed."""

import ast
import itertools
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import gengen.config.train as train
from gengen.config.commands import TextSampling
from gengen.config.compose import CONFIGS, compose_flat, compose_train, groups, read_command_line
from gengen.config.fields import allowed
from gengen.config.help import flat_help, train_help
from gengen.config.model import GPTConfig, UNetConfig
from gengen.config.model.diffusion import UNET_SIZES
from gengen.config.redact import redact
from gengen.config.resume import resumed
from gengen.config.schema import plain, schema
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.registry import DATA, MODELS, STAGES


def compose(*argv: str) -> TrainConfig:
    return compose_train(read_command_line(list(argv)))


ODD = [
    "a,b",
    "it's",
    'she said "hi"',
    "k=v=w",
    "f(x)",
    "line\nbreak",
    "true",
    "12",
    "1e-3",
    "null",
    "${seed}",
    r"\${x}",
    "[1,2]",
    "{a: b}",
    "~",
    " x ",
    "",
]


@pytest.mark.parametrize("text", ODD)
def test_text_arrives_verbatim(text: str) -> None:
    sample = compose_flat(TextSampling, read_command_line(["runs/a=b, c", f"prompt={text}", f"out={text}"]))
    assert (sample.prompt, sample.out, sample.run) == ([text] if text else [], text or None, "runs/a=b, c")
    assert getattr(compose("data=text", f"data.path={text}").data, "path") == (text or None)


def test_a_list_is_given_an_item_at_a_time() -> None:
    assert compose_flat(TextSampling, read_command_line(["r", "stop=a,b", "stop=12"])).stop == ["a,b", "12"]


@pytest.mark.parametrize(
    "group,option", [(group, option) for group, options in groups().items() for option in options]
)
def test_every_yaml_composes(group: str, option: str) -> None:
    entries = {"model": MODELS.entries, "data": DATA.entries, "stage": STAGES.entries}.get(group, {})
    fitting = {
        "image": ["data=animals"] if group == "model" else ["model=unet"],
        "conversations": ["stage=sft", "init_from=base"],
        "preferences": ["stage=reward", "init_from=base"],
        "ratings": ["stage=kto", "init_from=base"],
        "prompts": ["stage=ppo", "init_from=base", "stage.reward=requested_words"],
    }.get(entries[option].kind if option in entries else "", [])
    config = compose(*(setting for setting in fitting if not setting.startswith(f"{group}=")), f"{group}={option}")
    if group in ("model", "data", "stage", "optim", "logger"):
        assert getattr(config, group).name == {"gpt2": "gpt", "llama": "gpt"}.get(option, option)


def test_every_yaml_is_reached_by_a_group() -> None:
    assert {p.parent.name for p in CONFIGS.glob("*/*.yaml")} == set(groups())


@pytest.mark.parametrize(
    "argument,words",
    [
        (
            "trainer.max_step=10",
            ["did you mean trainer.max_steps (int or null, steps in all", "now null)?"],
        ),
        ("model=gtp", ["model=gtp: no such model", "did you mean gpt?"]),
        ("modle=gpt", ["unknown group modle=gpt", "did you mean model?"]),
        ("trainer.max_steps=ten", ["trainer.max_steps='ten' does not fit", "int or null > 0"]),
        ("trainer.max_steps=2.5", ["trainer.max_steps='2.5' does not fit", "int or null > 0"]),
        ("optim.lr=0", ["optim.lr=0.0 does not fit", "float or null > 0"]),
        ("optim.beta1=1", ["optim.beta1=1.0 does not fit", ">= 0 and < 1"]),
        (
            "trainer.precision=bf61",
            ["trainer.precision='bf61' does not fit", "auto, bf16, fp32", "did you mean bf16?"],
        ),
        ("+trainer.max_steps=3", ["+trainer.max_steps=3", "without '+'"]),
        ("++model.foo=1", ["++model.foo=1", "not added"]),
        ("~data", ["~data", "not added or removed"]),
        ("trainer.save_every=${trainer.nope}", ["trainer.save_every=${trainer.nope}", "'trainer.nope' not found"]),
        ("seed=${nope", ["seed=${nope"]),
        ("model.heads=3", ["model.width=256 does not fit model.heads=3"]),
        ("data.micro_batch_size=5", ["data.micro_batch_size=5 does not divide data.batch_size=8"]),
        ("trainer.strategy=fsdp", ["trainer.strategy=fsdp needs trainer.max_steps"]),
        ("trainer.devices=2", ["trainer.devices=2 needs trainer.max_steps"]),
        ("trainer.budget=soon", ["trainer.budget=soon is not a time; write 90s, 5m or 2h"]),
        ("max_time=1d", ["max_time=1d is not a time"]),
        ("optim.clip=inf", ["optim.clip=inf does not fit"]),
        ("seed=99999999999", ["seed=99999999999 does not fit"]),
        ("--hepl", ["unknown flag --hepl", "--help"]),
        ("--model", ["unknown flag --model", "settings are written without dashes: model=VALUE"]),
        ("--max-steps=5", ["unknown flag --max-steps=5", "without dashes: max_steps=5"]),
        ("trainer=xxxx", ["trainer=xxxx: no such trainer", "known: cpu, ddp, default, gpu"]),
        ("plugins=[no_such_module]", ["plugins=[no_such_module]", "No module named 'no_such_module'"]),
    ],
)
def test_a_mistake_is_answered(argument: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        compose(argument)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.exit_code == 2


def test_a_flag_of_other_tools_is_written_as_a_setting() -> None:
    for argv in (["--model", "gpt"], ["--model=gpt"], ["-model", "gpt", "trainer.max_steps=2"]):
        with pytest.raises(UserError, match=r"settings are written without dashes: model=gpt$"):
            read_command_line(argv)
    with pytest.raises(UserError, match=r"did you mean --multirun\?"):
        read_command_line(["--multi-run"])


def texts(*arguments: str) -> TextSampling:
    config: TextSampling = compose_flat(TextSampling, read_command_line(["runs/r", *arguments]))
    return config


def test_a_list_of_texts_may_be_json() -> None:
    assert texts('stop=["and", "\\n\\n"]', "stop=or").stop == ["and", "\n\n", "or"]
    assert texts("stop=[]").stop == [] and texts('stop=["[\\"and\\"]"]').stop == ['["and"]']
    for text in ("[and]", "[1, 2]", '["and"', "[", "and", '"and"', "['and']"):
        assert texts(f"stop={text}").stop == [text], "what is no JSON list of texts is a text"


def test_a_prompt_is_never_taken_apart() -> None:
    assert texts('prompt=["a", "b"]', "prompt=c").prompt == ['["a", "b"]', "c"]
    assert compose('data.prompts=["a"]').data.prompts == ['["a"]']  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "settings,name",
    [
        ({"size": "nano"}, "nano"),
        ({"size": "nano", "vocab_size": 300, "context": 48}, "nano"),
        ({"size": "micro", "width": 128, "ff": 384}, "nano"),  # whatever it says
        ({"size": "nano", "width": 64}, ""),
        ({"size": "nano", "head_size": 64}, ""),
        ({"size": "small", "layers": 3}, ""),
    ],
)
def test_a_size_is_the_one_it_is(settings: dict[str, Any], name: str) -> None:
    assert GPTConfig(**settings).size_name() == name


def test_every_size_of_every_family_is_named() -> None:
    for family in MODELS:
        for size in MODELS[family].config.sizes:
            assert MODELS[family].config(name=family, size=size).size_name() == size, (family, size)


def test_every_size_of_a_unet_can_be_trained() -> None:
    """unet micro could not: its finest level of 48 channels, which has no attention, was held to whole heads of 32."""
    for family, size, text in itertools.product(("unet", "ldm"), UNET_SIZES, (True, False)):
        MODELS[family].config(name=family, size=size, text=text, resolution=64, channels=3).check()
    with pytest.raises(UserError, match=r"80 is no multiple of model.head_size=32"):
        UNetConfig(widths=[48, 80], blocks=1, attention=[], patch=4, resolution=32, channels=3).check()


def test_help_shows_what_is_set_to_null_and_what_lists_begin_with(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("name: adamw\nclip: null\n")
    said = train_help(read_command_line([f"--config-dir={tmp_path}", "optim=mine", "data=text", "--help"]))
    assert re.search(r"optim.clip +float or null +null ", said) and re.search(r"optim.eps +float +1e-08 ", said)
    assert re.search(r"data.prompts +list of str +\['Once upon a time'\] ", said)


def test_interpolations_of_numbers_work() -> None:
    assert compose("trainer.save_every=${trainer.eval_every}", "trainer.eval_every=7").trainer.save_every == 7


def test_a_folder_of_ones_own_joins(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: books\noptim: {lr: 1e-4}\n"
    )
    config = compose(f"--config-dir={tmp_path}", "experiment=mine", "optim.beta2=0.9")
    assert (config.data.name, config.optim.lr, config.optim.beta2) == ("books", 1e-4, 0.9)
    assert compose(f"--config-dir={tmp_path}", "experiment=mine", "data=storybook").data.name == "storybook"


def test_a_plugin_registers_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from dataclasses import dataclass\nfrom gengen.config.model import ModelConfig\n"
        "from gengen.config.commands import SampleConfig\n"
        "from gengen.registry import register_model\n"
        "@register_model('mine', kind='text', sampling=SampleConfig, model='my_models:Mine', "
        "objectives={}, generator='my_models:Gen')\n"
        "@dataclass\nclass MineConfig(ModelConfig):\n    name: str = 'mine'\n    depth: int = 3\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = compose("plugins=[my_models]", f"--config-dir={tmp_path}", "model=mine", "model.depth=5")
    assert type(config.model).__name__ == "MineConfig" and getattr(config.model, "depth") == 5


def test_help_explains_every_field() -> None:
    text = train_help(read_command_line(["--help"]))
    for key, (f, _) in schema(TrainConfig, plain(compose())).items():
        assert key in text and f.metadata["doc"] and f.metadata["doc"] in text, key
    assert "unknown" not in flat_help("sample", TextSampling) and "top_p" in flat_help("sample", TextSampling)
    with pytest.raises(UserError, match="did you mean trainer"):
        train_help(read_command_line(["--help", "trianer"]))


def test_every_default_is_within_its_bounds() -> None:
    def check(cls: type) -> None:
        for f in fields(cls):
            if f.default_factory is not None and is_dataclass(f.default_factory):
                check(f.default_factory)
            elif allowed(f) and f.default is not None and isinstance(f.default, (int, float, str)):
                from gengen.config.fields import within

                assert within(f, f.default), f

    check(train.TrainConfig)


def test_no_config_module_imports_torch() -> None:
    for path in (Path(train.__file__).parent).rglob("*.py"):
        imported = {
            name.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for name in node.names
        }
        imported |= {
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }
        assert not [name for name in imported if name.split(".")[0] in ("torch", "lightning", "datasets")], path


@pytest.mark.fault("F27")
def test_resume_takes_free_warns_of_warned_and_refuses_fixed() -> None:
    stored = plain(compose("model=gpt", "data=storybook", "trainer.max_steps=2000", "optim.lr=0.003"))
    config, changes = resumed(
        stored, read_command_line(["run=x", "stop_at=5", "data.num_workers=2", "trainer.keep=7"])
    )
    assert (config.stop_at, config.data.num_workers, config.trainer.keep, changes) == (5, 2, 7, [])
    config, changes = resumed(stored, read_command_line(["run=x", "optim.lr=0.1", "trainer.max_steps=9"]))
    assert config.optim.lr == 0.1 and [str(c) for c in changes] == [
        "optim.lr: 0.003 -> 0.1",
        "trainer.max_steps: 2000 -> 9",
    ]
    for fixed in ("model.width=64", "seed=3", "data.tokenizer=byte", "data=books"):
        with pytest.raises(UserError, match="cannot change"):
            resumed(stored, read_command_line(["run=x", fixed]))
    same, changes = resumed(stored, read_command_line(["run=x", "model=gpt", "data=storybook", "seed=0"]))
    assert changes == [] and plain(same) | {"run": None} == stored


def test_a_resume_is_checked_against_the_run_and_not_against_the_defaults() -> None:
    stored = plain(
        compose("model=gpt", "data=storybook", "data.batch_size=64", "trainer.max_steps=9", "data.licence=${x}")
    )
    config, _ = resumed(
        stored, read_command_line(["run=x", "data.micro_batch_size=16", "trainer.devices=2", "trainer=cpu"])
    )
    assert (config.data.micro_batch_size, config.trainer.devices, config.trainer.device) == (16, 2, "cpu")
    assert getattr(config.data, "licence") == "${x}"
    with pytest.raises(UserError, match=r"micro_batch_size=48 does not divide"):
        resumed(stored, read_command_line(["run=x", "data.micro_batch_size=48"]))


def test_a_folder_with_an_odd_name_joins_too(tmp_path: Path) -> None:
    folder = tmp_path / "cfg (1), it's"
    (folder / "debug").mkdir(parents=True)
    (folder / "debug" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert compose("--config-dir", str(folder), "debug=mine").seed == 7


def test_secrets_are_not_written() -> None:
    assert redact('{"a": "x hunter\\"2hunter y"}', {"A_TOKEN": 'hunter"2hunter'}) == '{"a": "x <A_TOKEN> y"}'
    environment = {"MY_API_KEY": "s3cr3t-value", "HOME": "/home/someone", "SHORT_TOKEN": "abc"}
    assert redact("x s3cr3t-value y /home/someone abc", environment) == "x <MY_API_KEY> y /home/someone abc"
