"""`dicom`: predictions as DICOM objects."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, make_group
from pneumoscope.cli.models import choose_model
from pneumoscope.cli.options import OUTPUT, option
from pneumoscope.cli.output import echo
from pneumoscope.cli.predict import report_failed
from pneumoscope.cli.progress import show_progress
from pneumoscope.errors import UsageError
from pneumoscope.text import counted

if TYPE_CHECKING:
    from pneumoscope.dicomnet.results import Kind

KINDS = (
    "sr (structured report), sc (secondary capture: a picture), map (parametric map of the evidence), "
    "seg (segmentation of the evidence), fhir-r4, fhir-r5 (JSON)"
)

dicom_app = make_group("Answer in DICOM: results for the archive that the images came from.")


def read_kinds(text: str) -> "tuple[Kind, ...]":
    """Read which objects are wanted, as the option `--as` names them.

    Raises:
        UsageError: there is no such kind.
    """
    from pneumoscope.dicomnet.results import Kind

    named = tuple(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))
    if unknown := [each for each in named if each not in get_args(Kind)]:
        raise UsageError(f"found {unknown[0]!r}. Choose from {', '.join(get_args(Kind))}.", "as")
    return cast("tuple[Kind, ...]", named)


@dicom_app.command(cls=PanelCommand)
def results(
    paths: options.Paths,
    out: options.Out,
    model: options.Model = None,
    kinds: Annotated[
        str, option(f"Which objects to write, separated by commas: {KINDS}.", OUTPUT, "--as", "--kinds")
    ] = "sr,sc",
    report_class: Annotated[
        Literal["comprehensive-3d", "comprehensive"],
        option("Class of structured reports: comprehensive is shown by more viewers.", OUTPUT),
    ] = "comprehensive-3d",
    unit: Annotated[Literal["1", "%"], option("Unit of probabilities in structured reports.", OUTPUT)] = "1",
    prevalence: options.Prevalence = None,
    threshold: options.Threshold = None,
    alpha: options.Alpha = None,
    false_alarms: options.FalseAlarms = None,
    refuse_out_of_scope: options.RefuseOutOfScope = False,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    device: options.Device = "auto",
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Predict DICOM images, and write the results as DICOM objects of the same study."""
    from pneumoscope.decisions.threshold import require_number
    from pneumoscope.dicomnet.results import write_dicom_results

    named = read_kinds(kinds)
    deciding = {
        "device": device, "prevalence": prevalence, "threshold": threshold and require_number(threshold),
        "alpha": alpha, "false_alarms": false_alarms, "refuse_out_of_scope": refuse_out_of_scope,
    }  # fmt: skip
    with show_progress() as progress:
        answers = write_dicom_results(
            list(paths), out, choose_model(model), kinds=named, report_class=report_class, unit=unit,
            options=deciding, invert=invert, any_modality=any_modality, excel=excel, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    made = sum(len(answer.results) for answer in answers)
    echo(f"{counted(made, 'result')} of {counted(len(answers), 'image')}: {out}")
    errors = [answer.prediction.error for answer in answers if answer.prediction.error is not None]
    report_failed(errors, len(answers), out / "results.csv")


@dicom_app.command(cls=PanelCommand)
def mercure(
    source: Annotated[
        Path | None, typer.Argument(help="Folder of DICOM files. [default: $MERCURE_IN_DIR]", metavar="SOURCE")
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(help="Folder for the results. [default: $MERCURE_OUT_DIR]", metavar="TARGET")
    ] = None,
) -> None:
    """Answer the images in a folder once, as a processing module of the mercure orchestrator.

    Settings come from task.json in SOURCE; a summary goes to result.json in TARGET.
    """
    from pneumoscope.dicomnet.mercure import answer_folder

    answers = answer_folder(source, target)
    results = sum(len(answer.results) for answer in answers)
    echo(f"{counted(results, 'result')} of {counted(len(answers), 'file')}")


@dicom_app.command(cls=PanelCommand)
def send(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them.", metavar="PATH")],
    to: Annotated[
        str, option("Where to: dicom://TITLE@HOST:PORT, dicoms:// for TLS, or the address of a DICOMweb service.")
    ],
    verify: Annotated[
        Literal["none", "find", "qido"], option("Ask the destination afterwards whether it has each file.")
    ] = "none",
    title: Annotated[str, option("Our own AE title.")] = "PNEUMOSCOPE",
    token_file: Annotated[Path | None, option("File with a token for a DICOMweb service.")] = None,
    authorities: Annotated[
        Path | None,
        option("Certificates (PEM) of the authorities to trust for TLS. [default: the system's]"),
    ] = None,
) -> None:
    """Send DICOM files to an archive, such as those that `dicom results` wrote."""
    from pneumoscope.dicomnet.sending import send_files

    with show_progress() as progress:
        sent = send_files(
            list(paths), to, verify=verify, title=title, token_file=token_file, authorities=authorities,
            progress=progress,
        )  # fmt: skip
    failed = [each for each in sent if each.error is not None]
    echo(
        f"{counted(len(sent) - len(failed), 'file')} of {len(sent)}: {'delivered' if verify != 'none' else 'accepted'}"
    )
    for each in failed:
        echo(f"{each.path.name}: {each.error}" if each.sop_uid else str(each.error), err=True)
    if failed:
        raise typer.Exit(3)
