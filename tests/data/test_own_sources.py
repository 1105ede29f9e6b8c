"""A source of a user's own is one class: named by data.source, part of the fingerprint, imported when it is read."""

import sys

import pytest

from gengen import registry
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.data import TextConfig
from gengen.data.sources.base import source_for
from gengen.data.text.prepare import TextFolder, prepare
from gengen.errors import UserError

PLUGIN = """
from gengen.data.text.sources.base import Document
from gengen.registry import register_source

VERSION = 1


@register_source("text", "poems")
class Poems:
    def __init__(self, config):
        self.count = config.max_documents or 40

    def describe(self):
        return f"poems {VERSION}", "CC0-1.0"

    def facts(self):
        return {"poems": VERSION}

    def read(self, skips, say):
        for i in range(self.count):
            if i % 20 == 7:
                skips.skip("poem", f"poem {i}", "illegible")
            else:
                skips.good["poem"] += 1
                yield Document(f"Roses are red, violets are blue, this is poem {i}. ", f"poem {i}")
"""


@pytest.fixture
def poems(tmp_path, monkeypatch):
    """The module my_poems, which registers a source when it is imported."""
    (tmp_path / "my_poems.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "SOURCES", {kind: dict(names) for kind, names in registry.SOURCES.items()})
    monkeypatch.setattr(registry, "PLUGINS", set(registry.PLUGINS))
    yield "my_poems"
    sys.modules.pop("my_poems", None)


def test_a_source_of_ones_own_is_prepared(poems, tmp_path, said):
    argv = ["model=gpt", "data=text", "data.source=poems", "data.max_bad=0.1", f"data.dir={tmp_path / 'data'}"]
    with pytest.raises(
        UserError, match=r"data.source='poems' does not fit: .*one of auto, hub, files, wheel, storygen"
    ):
        compose_train(read_command_line(argv))
    config = compose_train(read_command_line([*argv, f"plugins=[{poems}]"])).data
    prepared = prepare(config, 300, said.append)
    assert prepared.meta["documents"] == 38 and prepared.meta["skips"] == {"poem": 2, "first": "poem 7: illegible"}
    assert prepared.describe()[0].endswith("poems 1") and prepared.describe()[1].endswith("CC0-1.0")
    with pytest.raises(UserError, match=r"2 of 40 poems cannot be read .*\n  first: poem 7: illegible"):
        prepare(TextConfig("text", dir=config.dir, source="poems", max_bad=0.01), 300, said.append)
    before = TextFolder(config, 300, said.append).identity()
    sys.modules[poems].VERSION = 2
    assert TextFolder(config, 300, said.append).identity() != before


def test_the_command_prepares_it(poems, tmp_path, capsys):
    own = [f"plugins=[{poems}]", "data.source=poems", "data.max_bad=0.1", "model.vocab_size=300"]
    assert main(["prepare", "data=text", *own, f"data.dir={tmp_path}"]) == 0
    assert "poems 1" in capsys.readouterr().out


def test_a_source_nobody_registered_is_named(poems):
    with pytest.raises(UserError, match=r"no source of text is called 'storygem'\n  did you mean storygen"):
        source_for("text", TextConfig("text", source="storygem"))


def test_own_code_is_told_from_ours(poems):
    """Errors of a source name its place: its package is among the user's own."""
    __import__(poems)
    assert "my_poems" in registry.own_packages()


def test_what_gengen_registers_can_be_imported():
    for kind, names in registry.SOURCES.items():
        for name in names:
            source = registry.source_class(kind, name)
            assert all(callable(getattr(source, method)) for method in ("describe", "facts", "read")), (kind, name)
