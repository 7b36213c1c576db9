"""What the guides tell people to type is understood by the commands of today."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from facetclip.cli import VERBS

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"(?:training|data_prep)/\w+\.py")
SCRIPTS = {"train": "train", "extract": "extract", "curve": "curve", "captions": "captions", "audit": "audit"} | {
    "evaluate": "evaluate",
    "promote": "promote",
    "build_shards": "shard",
    "check_catalog": "check",
    "render_catalog": "render",
}


def commands(text: str) -> list[list[str]]:
    """Verb and arguments of every command in the fenced blocks of a guide, also of the scripts' under a launcher."""
    found = []
    for block in BLOCK.findall(text):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line, comments=True) if line.startswith(("facetclip ", "accelerate launch ")) else []
            script = next((place for place, word in enumerate(words) if SCRIPT.fullmatch(word)), None)
            if script is not None:
                verb = SCRIPTS.get(Path(words[script]).stem)
                words = ["facetclip", verb, *words[script + 1 :]] if verb else []
            if words[:1] == ["facetclip"] and words[1] in VERBS and "..." not in words:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_command_of_a_guide_is_understood(guide: Path) -> None:
    for verb, *words in commands(guide.read_text(encoding="utf-8")):
        parser = argparse.ArgumentParser(prog=f"facetclip {verb}", allow_abbrev=False, exit_on_error=False)
        importlib.import_module(f"facetclip.{VERBS[verb][0]}").COMMANDS[verb][0](parser)
        try:
            parser.parse_intermixed_args(words)
        except (SystemExit, argparse.ArgumentError) as error:
            pytest.fail(f"{guide.name}: facetclip {verb} {shlex.join(words)}: {error}")


def test_every_launch_that_is_shown_says_how_many_processes_or_its_file_does() -> None:
    found = 0
    shown = [path for path in ROOT.glob("*/*") if path.suffix in (".yaml", ".toml", ".md", ".sh", ".sbatch")]
    for path in (ROOT / "README.md", *shown, *(ROOT / "training/runs").glob("*.toml")):
        text = re.sub(r"\\\n#?", " ", path.read_text(encoding="utf-8"))
        for launch, name in re.findall(r"(accelerate launch --config_file accelerate_configs/([\w.]+)[^\n]*)", text):
            configured = yaml.safe_load((ROOT / "accelerate_configs" / name).read_text(encoding="utf-8"))
            assert "num_processes" in configured or "--num_processes" in launch, f"{path.name}: {launch}"
            found += 1
    assert found > 10


def test_the_page_of_settings_is_what_the_code_takes() -> None:
    spec = importlib.util.spec_from_file_location("settings", ROOT / "docs" / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings.page(), "write it anew: python docs/settings.py"


def test_the_guides_show_what_each_persona_does() -> None:
    shown = {guide.name: {verb for verb, *_ in commands(guide.read_text(encoding="utf-8"))} for guide in GUIDES}
    assert {"schema", "check", "shard", "inspect", "extract", "fill"} <= shown["data_engineer.md"]
    assert {"train", "evaluate", "curve", "promote", "rollback", "export"} <= shown["ml_engineer.md"]
    assert "apply" in shown["merchandiser.md"]


def test_paths_that_the_guides_name_are_there() -> None:
    for guide in GUIDES:
        for path in re.findall(
            r"(?:training/runs|accelerate_configs|docs|launch)/[\w.-]+\.\w+", guide.read_text("utf-8")
        ):
            assert (ROOT / path).exists(), f"{guide.name} names {path}"
