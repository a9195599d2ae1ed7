"""`bench data verify|show|prepare|download|lists NAME`: get the data, and see whether it is what its authors published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inpbench.harness.cli.options import DataRoot, Json, Set, Verb
from inpbench.harness.console import harmless
from inpbench.harness.errors import EXIT_NEGATIVE

if TYPE_CHECKING:
    from inpbench.harness.api import DatasetInfo
    from inpbench.harness.audit import AuditReport

app = typer.Typer(
    name="data", help="Get, convert, check and look at a data set before anything is trained on it.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set (bench list datasets).")]


def _open(name: str, set_: list[str] | None, data_root: Path | None) -> tuple[DatasetInfo, Any, Path]:
    from inpbench.harness import params as parameters
    from inpbench.harness.registry import DATASETS
    from inpbench.harness.roots import locate

    info = DATASETS.get(name)
    params = parameters.build(name, info.params, parameters.split_settings(set_ or []).get(name, {}))
    return info, params, locate(info, params, data_root)


@app.command(cls=Verb)
def verify(
    name: Name,
    data_root: DataRoot = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 on warnings, too.")] = False,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Check counts against the published ones, unreadable files, mask pairing and sizes.

    bench data verify visa --data-root /data/VisA
    """
    from inpbench.harness.audit import audit
    from inpbench.harness.console import Live

    info, params, root = _open(name, set_, data_root)
    with Live("auto") as live:
        report = audit(info, params, root, strict=strict, progress=live.task(f"{name} verify"))
    if json_:
        import json

        typer.echo(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(EXIT_NEGATIVE)


def _print_report(report: AuditReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from inpbench.harness.sources import manifest_in_words

    console = Console(highlight=False)
    document = report.to_json()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("category", "train", "test normal", "test anomalous", "published", "defects"):
        table.add_column(title, justify="left" if title in ("category", "defects") else "right", overflow="fold")
    for category, splits in document["counts"].items():
        test = splits.get("test", {})
        normal = test.get("good", 0)
        published = document["published"].get(category)
        defects = ", ".join(f"{defect} {count}" for defect, count in test.items() if defect != "good")
        unlabelled = document["unlabelled"].get(category, 0)
        table.add_row(
            Text(harmless(category)),
            str(sum(splits.get("train", {}).values())),
            str(normal),
            str(sum(test.values()) - normal - unlabelled),
            "/".join(map(str, published.values())) if published else "-",
            Text(harmless(defects or "-")),
        )
    console.print(table)
    for entry in document["files"]:
        console.print(Text(harmless(f"{entry['status']:<18} {entry['file'] or '.'}: {entry['message']}")), soft_wrap=True)
    well = "no error among them" if report.findings else "all is well"
    errors = well if report.ok else "not fit to be measured on"
    console.print(f"{len(document['files'])} findings in {document['root']}: {errors}", markup=False, soft_wrap=True)
    console.print(f"{manifest_in_words(document['manifest'])}: the same wherever all files are the same", markup=False)


@app.command(cls=Verb)
def show(
    name: Name,
    data_root: DataRoot = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images a category and defect on the sheet.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.png", help="Write a contact sheet, masks outlined.")] = None,
    set_: Set = None,
) -> None:
    """What a data set is, where it is published, what its tree looks like; with --out a contact sheet.

    bench data show synthetic --out sheet.png
    """
    from inpbench.harness.registry import DATASETS

    info = DATASETS.get(name)
    for title, text in (
        ("name", f"{info.name} (version {info.version}): {info.title}"),
        ("categories", ", ".join(info.categories) or "from disk"),
        ("licence", info.licence or "-"),
        ("published at", info.homepage or "-"),
        ("how to get it", info.obtain or (f"bench data download {info.name}" if info.archives else "-")),
        *(("archive", f"{a.url} (sha256 {a.sha256 or 'not published'})") for a in info.archives),
    ):
        typer.echo(f"{title:<13} {text}")
    if info.expected_tree:
        typer.echo(f"expected tree\n{info.expected_tree.rstrip()}")
    if out is not None:
        from inpbench.harness.manifest import open_manifest
        from inpbench.harness.sheet import contact_sheet

        info, params, root = _open(name, set_, data_root)
        contact_sheet(open_manifest(info, params, root, strict=False), count, out)
        typer.echo(f"wrote {out}", err=True)


@app.command(cls=Verb)
def prepare(
    name: Name,
    from_: Annotated[Path, typer.Option("--from", metavar="RAW", help="The published files, unpacked.", show_default=False)],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The new data root.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that bench data wrote earlier.")] = False,
    set_: Set = None,
) -> None:
    """Convert what is published into the layout that is measured: tiles, splits, binary masks, images of packed files.

    bench data prepare sdd --from KolektorSDD --to data/sdd
    """
    from inpbench.harness import params as parameters
    from inpbench.harness.console import Live
    from inpbench.harness.conversion import prepare as convert
    from inpbench.harness.registry import DATASETS

    info = DATASETS.get(name)
    params = parameters.build(name, info.params, parameters.split_settings(set_ or []).get(name, {}))
    with Live("auto") as live:
        done = convert(info, params, from_, to, force=force, progress=live.task(f"{name} prepare"))
    for finding in done.findings:
        typer.echo(harmless(f"{finding.status}: {finding.file}: {finding.message}"), err=True)
    new = f"{done.new} of them written now" if done.new else "all there already"
    typer.echo(f"{done.target}: {done.files} files, {new}. Next: bench data verify {name} --data-root {done.target}")


@app.command(cls=Verb)
def download(
    name: Name,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The new folder.", show_default=False)],
    accept_licence: Annotated[
        str | None, typer.Option("--accept-licence", metavar="NAME", help="The data set's name: its licence is accepted.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that bench data wrote earlier.")] = False,
) -> None:
    """Fetch and unpack a data set that is published at an open address; says how to get the others.

    bench data download btad --to data/btad --accept-licence btad
    """
    from inpbench.harness.console import Live
    from inpbench.harness.downloads import download as fetch
    from inpbench.harness.registry import DATASETS

    info = DATASETS.get(name)
    with Live("auto") as live:
        done = fetch(info, to, accept_licence, force=force, progress=live.task(f"{name} download"))
    for file in done.first_use:
        typer.echo(f"{file}: no checksum is published; sha256 {done.sha256[file]} is remembered for the next time.", err=True)
    what = f"{done.files} files" if done.new else "already there"
    typer.echo(f"{done.target}: {what} ({info.licence}). {_next(info, done.target)}")


def _next(info: DatasetInfo, root: Path) -> str:
    """What to type after a download: some sets are measured on what `prepare` makes of them, and their adapter says so."""
    from inpbench.harness.errors import DataError
    from inpbench.harness.registry import resolve

    try:
        resolve(info.scan)(root, info.params(), lambda finding: None)
    except DataError as error:
        return error.hint
    return f"Next: bench data verify {info.name} --data-root {root}"


@app.command("lists", cls=Verb)
def lists_(
    name: Name,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The new folder of the lists.", show_default=False)],
    data_root: DataRoot = None,
    set_: Set = None,
) -> None:
    """Write the json lists that InCTRL's own scripts read: four files a category, with this machine's paths.

    bench data lists visa --data-root data/visa --to data/visa_json
    """
    import hashlib
    import json

    from inpbench.harness.manifest import open_manifest
    from inpbench.harness.new_folder import new_folder, real_target
    from inpbench.harness.registry import resolve

    info, params, root = _open(name, set_, data_root)
    files = resolve("inpbench.datasets.inctrl_lists:lists")(root, open_manifest(info, params, root).samples)
    texts = {file: json.dumps(entries, indent=1, ensure_ascii=False) + "\n" for file, entries in files.items()}
    target = real_target(to, force=False)
    with new_folder(target, hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()) as draft:
        for file, text in texts.items():
            (draft.folder / file).write_text(text, encoding="utf-8")
        draft.provenance = {"task": "lists", "dataset": info.name, "files": len(texts)}
    typer.echo(f"{target}: {len(texts)} lists of {sum(map(len, files.values()))} entries")
