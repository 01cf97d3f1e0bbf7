"""What the README says is true: its commands, code, pictures, links and layout."""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT, python

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = ("load_data", "build_model", "train_model", "evaluate_model")
VISIBLE = {*(f"{name}.py" for name in SCRIPTS), "requirements.txt", "tests", "README.md", "LICENSE"}


def test_visible_top_level_is_what_the_user_asked_for():
    tracked = subprocess.run(["git", "ls-files"], check=False, cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode or not tracked.stdout:
        pytest.skip("not a git checkout")
    top = {path.split("/")[0] for path in tracked.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == VISIBLE


def test_sections_stand_in_the_seeds_order_and_the_contents_lead_to_them():
    sections = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert sections == ["Table of Contents", "Installation", "Project Structure", "Dataset", "Model Architecture"] + [
        "Training the Model", "Evaluating the Model", "Results", "Usage", "License"]  # fmt: skip
    links = re.findall(r"^- \[(.+)\]\(#(.+)\)$", README, re.MULTILINE)
    assert links == [(name, name.lower().replace(" ", "-")) for name in sections[1:]]


def test_every_link_within_the_project_leads_somewhere():
    names = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in names}
    targets = [target for target in re.findall(r"\]\((\S+?)\)", README) if "://" not in target]
    assert targets
    for target in targets:
        path, _, heading = target.partition("#")
        assert (ROOT / path).exists() and (path or heading in headings), target


def test_commands_name_scripts_and_options_that_exist(end_of):
    commands = re.findall(r"python (\w+)\.py([^`&|)\n]*)", README)
    assert {name for name, _ in commands} == set(SCRIPTS)
    for name, arguments in commands:
        options = set(re.findall(r"--[\w-]+", arguments))
        assert options <= set(re.findall(r"--[\w-]+", end_of(__import__(name), "--help").out)), (name, arguments)


def test_pictures_are_there_and_small():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert len(pictures) >= 4
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 200_000, picture


def test_it_is_short_enough_for_five_minutes_and_nothing_is_left_to_fill_in():
    assert len(README) <= 10_000
    assert not re.search(r"@\w+@|TODO|TBD", README)


@pytest.mark.slow
@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
def test_python_snippets_run(code, tmp_path, digits_model):
    """In a folder that holds a model of the digits, as it does after the README's first command."""
    for library in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        if not (ROOT / f"{library}.py").exists():
            pytest.importorskip(library)
    shutil.copy(digits_model[0], tmp_path)
    (tmp_path / "snippet.py").write_text(code, encoding="utf-8")
    done = python("snippet.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d$|^Saved seed1.h5$", done.stdout, re.MULTILINE), "a digit, or several models"
