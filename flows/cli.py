"""The `stillmark` command. Thin: every line calls a flow, a task or a table."""

import atexit
import logging
import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from flows import (
    convert,
    lineage_commands,
    promotion_commands,
    storage_commands,
    up_commands,
    watch_commands,
)
from flows.as_json import Json, print_json
from flows.server import start_own_server
from tasks.errors import SetupError, StillmarkError
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.tracking import Tracking

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From unlabelled data and a few labels to a small int8 model, with lineage.",
)


class Page(StrEnum):
    """A page that `stillmark open` can show."""

    MLFLOW = "mlflow"
    PREFECT = "prefect"


PORTS = {Page.MLFLOW: 5000, Page.PREFECT: 4200}


@app.command()
def retrain(
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the journal.")] = "",
    wait: Annotated[
        float, typer.Option("--wait", metavar="MINUTES", help="Wait for another run to end.", min=0)
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Run the whole chain; reuse what has not changed.

    A rejected challenger is a normal outcome: the command ends with 0 and says why.
    """
    start_own_server(Settings())
    from rich.console import Console

    from flows.retrain import run_once
    from flows.tables import show
    from tasks.reasons import BY_HAND, Reason

    why = Reason(trigger=BY_HAND.trigger, sentence=reason.strip() or BY_HAND.sentence)
    outcome = run_once(why, wait_seconds=60 * wait)
    if as_json:
        print_json(
            {
                "outcome": outcome.retraining.outcome,
                "reason": outcome.retraining.sentence,
                "why": outcome.retraining.reason.model_dump(),
                "trained": outcome.retraining.trained,
                "training_seconds": outcome.retraining.training_seconds,
                "versions": {role: found.version for role, found in outcome.versions.items()},
                "evaluation": outcome.evaluation.model_dump(),
                "data": outcome.run.data.model_dump(),
            }
        )
    else:
        show(Console(), outcome.evaluation, outcome.retraining.sentence)


@app.command("compare")
def compare_arms(*, as_json: Json = False) -> None:
    """Say whether the chain helps on this data, and which part.

    Trains every arm of section `compare` over several label draws and seeds.
    """
    start_own_server(Settings())
    from rich.console import Console

    from flows.compare import advice, compare_once, rows_of
    from flows.tables import show_comparison

    compared = compare_once()
    found = compared.comparison
    if as_json:
        rows = rows_of(found)
        print_json({"arms": rows, "advice": advice(found), "plot": str(compared.plot)})
    else:
        show_comparison(Console(), compared)


@app.command("fit-budget")
def fit_to_budget(*, as_json: Json = False) -> None:
    """Find the cheapest model that a device can hold.

    Tries candidates within section `budget`, and chooses on validation rows. Where none fits, the
    exit code is 1.
    """
    start_own_server(Settings())
    from rich.console import Console

    from flows.fit_budget import fit_once
    from flows.front import fitted_as_json, show_fitted

    fitted = fit_once()
    if as_json:
        print_json(fitted_as_json(fitted))
    else:
        show_fitted(Console(), fitted)
    if fitted.choice.chosen is None:
        raise typer.Exit(1)


@app.command()
def check(*, as_json: Json = False) -> None:
    """Validate everything and print what a run would do.

    Looks at params.yaml, data and environment; trains nothing.
    """
    from flows.chain import plan
    from flows.once import preflight
    from tasks.stage import Run
    from tasks.tracking import Tracking
    from tasks.versioning import Versions

    settings = Settings()
    params = preflight(settings)
    versions = Versions.of(settings)
    tracking = Tracking(settings.tracking_uri, settings.home)
    current = versions.is_current()
    found = {"data": current}
    if current:
        found |= plan(tracking, Run(params.project, params.compute, versions.current()), params)
    if as_json:
        print_json({name: "reuse" if reused else "run" for name, reused in found.items()})
        return
    typer.echo(f"params.yaml, data and environment of '{params.project}' are fine. A run would:")
    for name, reused in found.items():
        typer.echo(f"  {'reuse' if reused else 'run  '}  {name}")
    if not current:
        typer.echo("  then, as the rows may change, whatever depends on them")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, to read all about it.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """List every method for params.yaml.

    For example: stillmark methods, stillmark methods losses.dist
    """
    from flows.methods import described, listed

    if name:
        typer.echo(described(name))
    elif as_json:
        print_json(listed())
    else:
        for drawer, found in listed().items():
            typer.echo(f"{drawer}:")
            for method, line in found.items():
                typer.echo(f"  {method:<20} {line}")


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(help="MODEL, MODEL@ALIAS or MODEL:VERSION; champion by default.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Image files. Texts or JSON rows, or files of one that end in .txt or .json.",
            metavar="INPUT...",
        ),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Label raw files with a registered model.

    For example: stillmark predict digits.edge seven.png
    """
    from flows.naming import version_named

    tracking = _tracking()
    version = version_named(tracking, model)
    classifier = tracking.load_pyfunc(f"models:/{version.name}/{version.version}")
    contents = [_content(text, str(classifier.loader_module)) for text in inputs]
    try:
        found = classifier.predict(contents)
    except ValueError as error:
        at = int(str(error).removeprefix("input ").partition(":")[0])
        raise StillmarkError(f"{inputs[at]}: {str(error).partition(': ')[2]}") from None
    rows = found.to_dict(orient="records")
    if as_json:
        print_json([{"input": text, **row} for text, row in zip(inputs, rows, strict=True)])
        return
    for text, row in zip(inputs, rows, strict=True):
        typer.echo(f"{text}\t{row['label']}\t{row['probability']:.3f}")


GIVEN = (
    promotion_commands,
    lineage_commands,
    convert,
    up_commands,
    watch_commands,
    storage_commands,
)
for more in (command for module in GIVEN for command in module.COMMANDS):
    app.command()(more)


@app.command()
def status(*, as_json: Json = False) -> None:
    """Say what is champion, why, and how runs ended."""
    from flows.overview import lines, overview, reach

    settings = Settings()
    settings.writable_home()
    found = overview(settings, reach(settings))
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(lines(found)))


@app.command("open")
def open_page(
    page: Annotated[Page, typer.Argument(help="Which page.")],
    port: Annotated[
        int | None, typer.Option(help="Another port than 5000 (mlflow) or 4200 (prefect).")
    ] = None,
) -> None:
    """Serve MLflow's or Prefect's page, until Ctrl-C.

    While `stillmark up` runs, its pages are there already; then it says where.
    """
    from flows.services import Running

    settings = Settings()
    settings.writable_home()
    up = Running.of(settings.home)
    if up is not None:
        typer.echo(up.mlflow if page is Page.MLFLOW else up.prefect.removesuffix("/api"))
        return
    number = port or PORTS[page]
    _refuse_taken(number)
    typer.echo(f"http://127.0.0.1:{number}  (Ctrl-C stops it)")
    scripts = Path(sys.executable).parent
    if page is Page.MLFLOW:
        command = [
            "mlflow",
            "server",
            "--backend-store-uri",
            settings.tracking_uri,
            "--workers",
            "1",
        ]
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    else:
        command = ["prefect", "server", "start"]
        os.environ["PREFECT_SERVER_UI_API_URL"] = f"http://127.0.0.1:{number}/api"
    command += ["--host", "127.0.0.1", "--port", str(number)]
    os.environ["PATH"] = os.pathsep.join([str(scripts), os.environ.get("PATH", "")])
    os.chdir(settings.root)
    os.execv(scripts / command[0], command)  # noqa: S606 - our own words and a number


def _tracking() -> "Tracking":
    from tasks.tracking import Tracking

    settings = Settings()
    settings.writable_home()
    return Tracking(settings.tracking_uri, settings.home)


def _content(text: str, loader: str) -> bytes | str:
    """What INPUT means to a model, by the module that loads it: images are always files."""
    path = Path(text)
    if loader.endswith("_images"):
        return _read(path)
    if path.suffix not in {".txt", ".json"}:
        return text
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StillmarkError(f"{path} is not text in UTF-8; save it so") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StillmarkError(f"{path} cannot be read: {error.strerror}") from None


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SetupError(
                f"port {port} is taken ({error.strerror}); choose another with --port"
            ) from None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; an error of ours is one line (or one per mistake) and exit code 2."""
    try:
        app(args=arguments)
    except StillmarkError as error:
        for line in str(error).splitlines():
            typer.echo(f"stillmark: {line}", err=True)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def program(arguments: list[str] | None = None) -> NoReturn:
    """The console script: `main`, then the end of the process.

    Once everything that has to be ended at exit has been, the process ends there and then: Python
    would take the modules apart one by one, which with torch and MLflow loaded takes seconds.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # before the others, so it runs after them
    codes.append(main(arguments))
    sys.exit(codes[0])


def _leave(codes: list[int]) -> None:
    if not codes:  # an error of another kind: Python ends as it does
        return
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more: the interpreter has an exit code for that
        return
    os._exit(codes[0])


if __name__ == "__main__":
    program()
