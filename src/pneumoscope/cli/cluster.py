"""`cluster`: predict on many machines."""

from typing import Annotated

import typer

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, make_group
from pneumoscope.cli.options import COMPUTING, DECISIONS, IMAGES, OUTPUT, option
from pneumoscope.cli.output import echo
from pneumoscope.cli.progress import show_progress

cluster_app = make_group("Work on many machines, with Ray.")


@cluster_app.command(cls=PanelCommand)
def predict(
    data: Annotated[
        str,
        typer.Argument(help="Folder of images, a table, or an address such as s3://bucket/folder.", metavar="DATA"),
    ],
    out: Annotated[
        str, option("Folder that all machines share, or an address. An interrupted run continues there.", OUTPUT)
    ],
    model: options.Model = None,
    prevalence: options.Prevalence = None,
    threshold: options.Threshold = None,
    alpha: options.Alpha = None,
    false_alarms: options.FalseAlarms = None,
    ood: Annotated[bool, option("Detect out-of-distribution images, and give them no probability.", DECISIONS)] = True,
    refuse_out_of_scope: options.RefuseOutOfScope = False,
    path_column: options.PathColumn = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    device: options.Device = "auto",
    address: options.Address = None,
    workers: Annotated[
        int | None, option("Most processes that predict. [default: as many as there are cores]", COMPUTING, least=1)
    ] = None,
    cpus_per_worker: Annotated[int, option("Cores that each process computes with.", COMPUTING, least=1)] = 1,
    part_size: Annotated[int, option("Images in one file of the output.", OUTPUT, least=1)] = 1000,
    patient_ids: Annotated[
        bool, option("Name patients, instead of writing pseudonyms.", OUTPUT, "--patient-ids")
    ] = False,
    allow_missing: Annotated[
        bool, option("Go on if a folder is gone: its images get rows with an error.", IMAGES, "--allow-missing")
    ] = False,
) -> None:
    """Predict radiographs on many machines, and write Parquet files with a row for each image."""
    from pneumoscope.cluster.predict import Workers, predict_on_cluster
    from pneumoscope.cluster.worker import Options
    from pneumoscope.datasets.columns import Naming
    from pneumoscope.images.read import Reading

    wanted = Options(
        device, ood, prevalence, threshold, alpha, false_alarms, refuse_out_of_scope, patient_ids, allow_missing
    )
    where = Workers(address, workers, cpus_per_worker, part_size)
    with show_progress(" Continue it with the same command.") as progress:
        found = predict_on_cluster(
            data, out, model, wanted, where, Reading(invert, any_modality), Naming(path_column), progress
        )
    echo(f"Predictions: {found.out}/predictions", err=True)
    echo(f"{found.images} images, {found.new} of them now.", err=True)
    if found.failed:
        echo(f"{found.failed} of these have no prediction. The column error names all reasons, such as:", err=True)
        for reason in found.reasons:
            echo(reason, err=True)
    if found.new and found.failed == found.new:
        raise typer.Exit(3)
