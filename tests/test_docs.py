"""The documentation names files, keys and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from anatomy_ssl import __main__ as command_line
from anatomy_ssl.data import public

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("bundles/*/docs/README.md"))]
# names of files that the reader makes up, that a command writes, or that another program has
READERS_OWN = {"scans.json", "cases.json", "brats.json", "headneck.json", "datalist.json", "labelled.json"}
READERS_OWN |= {
    "slabs.json",
    "recipe.json",
    "radiographs.json",
    "nnUNetResEncUNetMPlans.json",
    "dataset.json",
    "model_info.json",
    "feed.json",
    "cxr.json",
    "mrk.json",
}


def configs(text: str) -> Path:
    """The folder of configuration files that a page or a command is about: the bundle that it names."""
    named = re.search(r"bundles/(\w+)", text)
    return ROOT / "bundles" / (named[1] if named else "isimed") / "configs"


def commands(page: Path) -> list[str]:
    """Each command of the page's shell blocks, continued lines joined and the block's variables filled in."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", lambda _, value=value: value, line)
            assignment = re.fullmatch(r"\s*([A-Z]+)=\"?(.*?)\"?", line)
            if assignment:
                variables[assignment[1]] = assignment[2]
            elif line.strip():
                found.append(line.split("  #")[0].strip())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_configs_exist(page: Path) -> None:
    """Relative links lead somewhere; named configuration files are there."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"[\w*]+\.(?:yaml|json)\b", text):
        if name not in READERS_OWN:
            assert list(ROOT.glob(f"bundles/*/configs/{name}")), name


def known_keys(command: str, page: Path) -> set[str]:
    """Top-level keys of the configuration files that a command names, and of `monai.bundle run` itself."""
    names = re.findall(r"[\w]+\.(?:yaml|json)(?=['\s\"\]])", command.split("--config_file")[1])
    folder = configs(f"{command} {page.relative_to(ROOT).as_posix()}")
    files = [str(folder / name) for name in names if (folder / name).exists()]
    assert files, command
    return {"config_file", *(key.lstrip("+") for key in ConfigParser.load_config_files(files))}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_have_known_options(page: Path) -> None:
    """Keys given to `monai.bundle run` exist in the files it is given; commands of ours exist."""
    for command in commands(page):
        if "monai.bundle run" in command:
            given = set(re.findall(r"--(\w+)", command.split("monai.bundle run")[1]))
            assert given <= known_keys(command, page), command
            run_id = re.search(r"monai\.bundle run (\w+)", command)
            assert run_id is None or run_id[1] in known_keys(command, page), command
        elif "-m anatomy_ssl" in command:
            name, *rest = command.split("-m anatomy_ssl ")[1].split()
            assert name in command_line.COMMANDS, command
            assert name != "datalist" or rest[0] in (*public.__all__, "folder", "csv"), command
        elif command.startswith("make "):
            target = command.split()[1]
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), command
