"""The command line: each command parses and then calls one function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.exceptions import TyperException

from kdflow.errors import UserError, one_line_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdflow.report.grid import Grid

app = typer.Typer(
    help="Knowledge distillation as a pipeline. `dvc repro` runs the experiment in params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Root = Annotated[Path, typer.Option(help="The project's folder.")]
Paper = Annotated[Path, typer.Option(help="The folder of a paper's tables.yaml.")]
PAPER = Path("paper")


@app.command()
def check(root: Root = Path()) -> None:
    """Check params.yaml and recipes/ without running anything."""
    from kdflow import config

    experiment = config.load(root)
    params = experiment.params
    typer.echo(
        f"settings are valid: {params.dataset}, {params.teacher} -> {params.student}, "
        f"{len(params.methods)} methods x {len(params.seeds)} seeds"
    )


@app.command()
def table(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help="A table of the paper; none: that of the experiment in hand."),
    ] = None,
    form: Annotated[
        Literal["terminal", "md", "tex", "csv", "json"], typer.Option("--format", help="Of a table of the paper.")
    ] = "terminal",
    paper: Paper = PAPER,
    root: Root = Path(),
) -> None:
    """Print the table of the experiment in params.yaml, or a table of the paper with what is there of it."""
    from rich.console import Console
    from rich.table import Table

    from kdflow import config, report
    from kdflow.report.table import HEAD, notes, rows

    if name is not None:
        _paper_table(name, form, paper, root)
        return
    results = report.collect(config.load(root), root / "data/teacher/record.json", root / "data/records")
    shown = Table(title=results.title, title_justify="left")
    for i, column in enumerate(HEAD):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows(results):
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    for line in notes(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    typer.echo(f"table:  {root / 'data/report/table.md'}\nfigure: {root / 'data/report/accuracy.svg'} (and .png)")


def _paper_table(name: str, form: str, folder: Path, root: Path) -> None:
    from kdflow import plan
    from kdflow.cells import States
    from kdflow.plan import Costs, Results
    from kdflow.report import costs, tables
    from kdflow.report.grid import grid

    paper = plan.load(folder, root)
    part = paper.part_named(name)
    if isinstance(part, Results):
        found = grid(paper, States(paper), name, part)
        if form == "terminal":
            _print_grid(found)
        else:
            typer.echo(tables.all_forms(found)[form], nl=False)
    elif isinstance(part, Costs):
        forms = costs.all_forms(name, part, costs.rows(paper, part))
        typer.echo(forms["md" if form == "terminal" else form], nl=False)
    else:
        made = f"dvc repro {folder}/dvc.yaml:{name}"
        raise UserError(f"kdflow table: {name}: a figure; `{made}` or `kdflow report` draws it")


def _print_whole(shown: Table) -> Console:
    from rich.console import Console

    console = Console()
    # Where there is less room the terminal breaks lines, but rich cuts no digit off.
    console.width = max(console.width, console.measure(shown, options=console.options.update(width=1000)).maximum)
    console.print(shown)
    return console


def _print_grid(found: Grid) -> None:
    from rich.table import Table

    from kdflow.report.tables import figure, heads, notes, papers

    shown = Table(title=f"{found.name}: {found.caption}", title_justify="left")
    shown.add_column("")
    for head in heads(found):
        shown.add_column(head, justify="right")
    styles = {1: "bold", 2: "underline", None: ""}
    for label, entries in found.rows.items():
        texts = []
        for entry in entries:
            style = styles[found.rank(entry)] if entry.ours else "dim"
            ours = f"[{style}]{figure(entry)}[/]" if style else figure(entry)
            texts.append(f"{ours}\n[dim]{papers(entry)}[/]" if papers(entry) else ours)
        shown.add_row(label, *texts)
    console = _print_whole(shown)
    console.print("Below each figure: the paper's, and ours less the paper's.", highlight=False, soft_wrap=True)
    for line in notes(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def plan(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a file is not up to date.")] = False,
    paper: Paper = PAPER,
    root: Root = Path(),
) -> None:
    """Make cells.json and dvc.yaml of a paper's tables.yaml."""
    from kdflow import plan

    found = plan.load(paper, root)
    if not check:
        plan.write(found)
    plan.check(found)
    typer.echo(
        f"{paper}: {len(found.parts)} tables and figures, {len(found.cells)} cells, {len(found.teachers)} teachers; "
        f"in full {plan.total(found):,.0f} epochs of students"
    )


@app.command()
def cells(
    table: Annotated[str | None, typer.Option(help="Only what this table prints: 3 or table3.")] = None,
    figure: Annotated[str | None, typer.Option(help="Only what this figure prints: 1 or figure1.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Look at what is made of each.")] = False,
    paper: Paper = PAPER,
    root: Root = Path(),
) -> None:
    """List the paper's cells and their teachers: dvc repro paper/dvc.yaml:cell@NAME, or teacher@NAME."""
    from collections import Counter

    from kdflow import plan
    from kdflow.cells import States

    found = plan.load(paper, root)
    chosen = [f"{kind}{key}" if key.isdigit() else key for kind, key in (("table", table), ("figure", figure)) if key]
    for part in chosen:
        found.part_named(part)
    names = [name for name in found.cells if not chosen or set(chosen) & set(found.users[name])]
    asked = {f"{cell.dataset}-{cell.teacher}" for name, cell in found.cells.items() if name in names}
    teachers = [name for name in found.teachers if name in asked or not chosen]
    if not status:
        typer.echo("\n".join([*teachers, *names]))
        return
    states, counts = States(found), Counter[str]()
    for name in teachers:
        record = states.teacher(name)
        top1 = "" if record is None else f"{record[0].accuracy.top1:.2f}"
        typer.echo(f"{'missing' if record is None else 'done':8} teacher  {top1:10} {name}")
    for name in names:
        state = states(name)
        counts[state.status] += 1
        top1 = str(state.record.top1) if state.record and state.n else ""
        typer.echo(f"{state.status:8} {state.n}/{state.of}  {top1:13} {name}{state.why and f'  ({state.why})'}")
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()) or "no cells")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="CELL|TEACHER")], paper: Paper = PAPER, root: Root = Path()
) -> None:
    """Print a cell or teacher: settings, command, inputs, state, what the paper prints, and its record."""
    from kdflow import plan
    from kdflow.report.show import told

    typer.echo(told(plan.load(paper, root), name))


@app.command()
def report(
    out: Annotated[Path | None, typer.Option(help="The page; else data/<paper>/report.html.")] = None,
    paper: Paper = PAPER,
    root: Root = Path(),
) -> None:
    """Make one page of all tables and figures, as far as their cells are there."""
    from kdflow import plan
    from kdflow.report import page

    found = plan.load(paper, root)
    out = out or root / found.data / "report.html"
    page.write(found, out)
    typer.echo(out)


@app.command()
def drift(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CELL]...", help="None: all of the baseline; to update: all that are done."),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Else baseline.json of the paper's folder.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Make the baseline of what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all comparisons as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Print Markdown for a pull request.")] = False,
    paper: Paper = PAPER,
    root: Root = Path(),
) -> None:
    """Hold the paper's records against a baseline; exit code 0: nothing moved, 2: something did, 1: bad input."""
    from kdflow import drift, plan
    from kdflow.cells import States

    found, file = plan.load(paper, root), baseline or root / paper / "baseline.json"
    for name in names or []:
        found.cell_named(name)
    if update:
        states = States(found)
        chosen = names or [name for name in found.cells if states(name).status == "done"]
        drift.write(file, drift.make(found, chosen, drift.read(file).tolerances if file.exists() else drift.TOLERANCES))
        typer.echo(f"{file}: {len(chosen)} cells")
        return
    findings = drift.compare(found, drift.read(file), names or [])
    if as_json:
        typer.echo(drift.as_json(findings))
    else:
        typer.echo(drift.markdown(findings) if as_markdown else drift.terminal(findings), nl=False)
    if any(finding.status != "ok" for finding in findings):
        raise typer.Exit(2)


@app.command()
def cost(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Keys of recipes/models.yaml, the teacher first; none: all pairs."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A key of recipes/datasets.yaml; without it, that of params.yaml.")
    ] = None,
    root: Root = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every digit.")] = False,
) -> None:
    """Count parameters and FLOPs of models, or of a dataset's pairs in recipes/pairs.yaml."""
    from rich import box
    from rich.table import Table

    from kdflow import config, cost

    experiment = config.load(root)
    dataset = dataset or experiment.params.dataset
    try:
        rows = cost.compare(experiment, dataset, models or [])
    except UserError as error:
        raise UserError(f"kdflow cost: {error}") from None
    if as_json:
        typer.echo(cost.as_json(rows))
        return
    size = experiment.datasets[dataset].data.image_size
    shown = Table(title=f"{dataset}: 3 x {size} x {size}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(cost.HEAD):
        shown.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        if row.ratios is None:
            shown.add_section()
        shown.add_row(*cost.cells(row))
    console = _print_whole(shown)
    for line in cost.NOTES:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def methods(root: Root = Path()) -> None:
    """Print what every method and its parts are, as Markdown (docs/methods.md)."""
    from kdflow import config
    from kdflow.report.methods import page

    typer.echo(page(config.load(root).methods), nl=False)


@app.command()
def disagreement(
    mix: Annotated[str, typer.Option(help="A strong view.")] = "cutmix",
    out: Annotated[Path, typer.Option(help="Folder for disagreement.json, samples.png and samples.svg.")] = Path(
        "data/disagreement"
    ),
    root: Root = Path(),
) -> None:
    """Count the strong views whose label the teacher sees otherwise, and show some (needs `dvc repro teacher`)."""
    from kdflow import config, pipeline

    experiment = config.load(root)
    data = root / "data"
    pipeline.disagreement(experiment, mix, data / f"{experiment.params.dataset}.h5", data / "teacher", out)


logits_app = typer.Typer(help="The teacher's logits, kept for other runs.", no_args_is_help=True)
app.add_typer(logits_app, name="logits")


@logits_app.command("estimate")
def estimate_logits(
    float32: Annotated[bool, typer.Option("--float32", help="Keep every digit.")] = False, root: Root = Path()
) -> None:
    """Print what each store of logits would cost and save in the experiment of params.yaml; nothing is filled."""
    from rich.console import Console
    from rich.table import Table

    from kdflow import config, estimate
    from kdflow.train import pick_device

    experiment = config.load(root)
    params = experiment.params
    found = estimate.estimate(experiment, "float32" if float32 else "float16", pick_device(params.compute.device))
    epochs = experiment.student_run(params.methods[0], 0).training.epochs
    title = (
        f"{params.teacher} teaches {len(params.methods)} methods x {len(params.seeds)} seeds x {epochs} epochs of "
        f"{experiment.train_images:,} images ({params.dataset}), about {found.speed:,.0f} views/s on {found.device}"
    )
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(("logits", "GB on disk", "Teacher hours ahead", "during training", "in all")):
        shown.add_column(column, justify="right" if i else "left")
    for cost in found.costs:
        hours = [f"{found.hours(views):.2f}" for views in (cost.ahead, cost.during, cost.ahead + cost.during)]
        shown.add_row(cost.source, f"{cost.size / 1e9:.3f}", *hours)
    Console().print(shown)
    typer.echo("replay pays from the second method or student of a teacher and seed on, and costs disk alone.")
    if found.pays_from is not None:
        typer.echo(f"views pays from {found.pays_from} epochs on, over all methods and seeds: here are {found.has}.")


def main() -> None:
    """Run the command line."""
    with one_line_errors():
        try:
            code = app(standalone_mode=False)
        except TyperException as error:  # a flag or command that is not known
            context = getattr(error, "ctx", None)
            command = f"kdflow {context.info_name}" if context and context.parent else "kdflow"
            raise UserError(f"{command}: {error.format_message()}") from None
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code or 0)


if __name__ == "__main__":
    main()
