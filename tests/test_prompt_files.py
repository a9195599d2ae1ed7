"""`--prompts DIR`: images that a method's authors published as tensors, shown in the place of drawn ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trees
from commands import bench

from inpbench.harness.errors import DataError
from inpbench.harness.prompt_files import PromptImages

CPU = torch.device("cpu")


def read(folder: Path, shots: int = 2) -> PromptImages:
    return PromptImages(folder, "nut", shots, (4, 4), CPU, torch.float64)


def test_a_list_of_tensors_is_a_set_of_normal_images(tmp_path: Path) -> None:
    images = [torch.rand(3, 4, 4), torch.rand(3, 4, 4)]
    torch.save(images, tmp_path / "nut.pt")
    found = read(tmp_path)
    assert torch.equal(found.batch([1, 0]), torch.stack(images[::-1]).double())
    assert [sample.image for sample in found.samples] == ["nut.pt#0", "nut.pt#1"]
    assert found.masks([0]).shape == (1, 4, 4) and not found.masks([0]).any()


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.rand(3, 4, 4)], "holds 1 images, 2 shots"),
        ([torch.rand(3, 4, 5)] * 2, r"expected a list of tensors \(3, 4, 4\), found a list of \(3, 4, 5\)"),
        ({"a": torch.rand(1)}, "found a dict"),
        ([torch.full((3, 4, 4), float("nan"))] * 2, "not finite"),
        ([Hostile()], "cannot be read as tensors"),
    ],
)
def test_what_is_no_prompt_file(content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "nut.pt")
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    assert "ran" not in capsys.readouterr().out


def test_from_the_command_line(tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "data")
    categories = sorted(path.name for path in root.iterdir())
    (tmp_path / "prompts").mkdir()

    def run(*more: Any) -> Any:
        return bench(
            *("run", "--methods", "winclip", "--setting", "few_shot", "--shots", "1", "--preset", "smoke", "--weights", "random"),
            *("--dataset", "folder", "--data-root", root, "--results", tmp_path / "results", "--json", *more),
        )

    missing = run("--prompts", tmp_path / "prompts")
    assert missing.code == 3 and f"{categories[0]}.pt" in missing.err
    for seed, category in enumerate(categories):
        torch.manual_seed(seed)
        torch.save([torch.randn(3, 96, 96)], tmp_path / "prompts" / f"{category}.pt")
    shown, drawn = run("--prompts", tmp_path / "prompts"), run()
    assert shown.code == 0 and drawn.code == 0, shown.err + drawn.err
    records = [path.read_text() for path in (tmp_path / "results").rglob("*.json")]
    assert len(records) == 2
    assert sum('"prompts"' in text and "shown the images of prompt files" in text for text in records) == 1
    refused = run("--methods", "inp_former", "--prompts", tmp_path / "prompts")
    assert refused.code == 2 and "told the category" in refused.err
