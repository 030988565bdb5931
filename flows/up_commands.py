"""The command that runs the services: `flows.cli` takes it in."""

import json
from typing import Annotated

import typer

from flows.services import Plan
from flows.up import LOGS
from flows.up import up as run
from tasks.settings import Settings


def up(
    *,
    prefect_port: Annotated[
        int | None, typer.Option(help="Of Prefect's server.", min=1, max=65535)
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(help="Of MLflow's server.", min=1, max=65535)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the addresses as JSON, once all are healthy.")
    ] = False,
) -> None:
    """Run the servers and the schedule here, until Ctrl-C.

    For example: stillmark up --prefect-port 4300
    """
    given = {"prefect_port": prefect_port, "mlflow_port": mlflow_port}
    settings = Settings().model_copy(
        update={name: port for name, port in given.items() if port is not None}
    )
    logs = settings.home / LOGS

    def healthy(planned: Plan) -> None:
        if as_json:
            found = {"prefect": planned.prefect, "mlflow": planned.mlflow, "logs": str(logs)}
            typer.echo(json.dumps(found))
            return
        here = {service.name for service in planned.services}
        for name, address in (
            ("prefect", planned.prefect.removesuffix("/api")),
            ("mlflow", planned.mlflow),
        ):
            typer.echo(f"{name:<10} {address:<36} {'' if name in here else 'elsewhere'}".rstrip())
        typer.echo(f"{'logs':<10} {logs}")
        typer.echo("all are healthy; Ctrl-C stops them")

    run(settings, healthy, lambda line: typer.echo(f"stillmark: {line}", err=True))


COMMANDS = (up,)
