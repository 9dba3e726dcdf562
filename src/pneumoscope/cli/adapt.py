"""`adapt`: a model for another hospital's images, made of a trained one."""

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli import options
from pneumoscope.cli.models import choose_model
from pneumoscope.cli.options import DECISIONS, IMAGES, OUTPUT, option
from pneumoscope.cli.output import print_adaptation
from pneumoscope.cli.progress import show_progress


def adapt(
    context: typer.Context,
    data: options.Data,
    out: options.Out = Path("runs/adapted"),
    model: options.Model = None,
    head: Annotated[bool, option("Also try another head on the network's features.", None, "--head")] = False,
    finetune: Annotated[
        bool,
        option("Experimental: also try fine-tuning; needs 60 patients, trains 4 networks.", None, "--finetune"),
    ] = False,
    threshold: Annotated[
        str | None, option("A rule of train, or a number, instead of the model's rule.", DECISIONS)
    ] = None,
    alpha: options.Alpha = None,
    false_alarms: options.FalseAlarms = None,
    prevalence: Annotated[
        float | None,
        option("Share of the positive class where the model will be used, if it is another than in DATA.", DECISIONS),
    ] = None,
    intended_use: Annotated[
        str | None, option("YAML file that states the patients and images the adapted model is meant for.", IMAGES)
    ] = None,
    patient_pattern: options.PatientPattern = None,
    invert: options.Invert = False,
    any_modality: options.AnyModality = False,
    resamples: options.Resamples = 2000,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    cache: options.Cache = True,
    plot_formats: Annotated[str, option("Formats of the plot files, such as svg,pdf,png.", OUTPUT)] = "svg",
    patient_ids: options.PatientIds = False,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Adapt a model to a hospital's own labelled images, of which 20 to 500 are enough."""
    with show_progress() as progress:
        from pneumoscope.images.read import Reading
        from pneumoscope.training import adapt as job

        adaptation = job.adapt(
            data, out, model=choose_model(model), head=head, finetune=finetune, threshold=threshold, alpha=alpha,
            false_alarms=false_alarms, prevalence=prevalence, intended_use=intended_use,
            patient_pattern=patient_pattern, reading=Reading(invert, any_modality), naming=context.obj, device=device,
            resamples=resamples, seed=seed, cache=cache, plot_formats=plot_formats, patient_ids=patient_ids,
            excel=excel, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    print_adaptation(adaptation)
