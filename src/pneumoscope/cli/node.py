"""`dicom node`: receive images, answer them, and send the results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pneumoscope.cli import options
from pneumoscope.cli.dicom import read_kinds
from pneumoscope.cli.models import choose_model
from pneumoscope.cli.options import DECISIONS, OUTPUT, option
from pneumoscope.cli.output import echo
from pneumoscope.cli.serve import STORAGE, Database
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.dicomnet.node import Node
    from pneumoscope.dicomnet.node_settings import NodeSettings

_SERVICE, _RECEIVING, _SENDING = "Service", "Receiving", "Sending"


_LogFormat = Annotated[Literal["text", "json"] | None, option("Form of the log. [default: text]", OUTPUT)]
_Config = Annotated[
    Path | None, option("Settings as YAML: rules, destinations, TLS, limits. Flags override it.", _SERVICE)
]
_Title = Annotated[str | None, option("AE title of the node. [default: PNEUMOSCOPE]", _SERVICE)]
_Host = Annotated[str | None, option("Address to listen on. [default: 127.0.0.1]", _SERVICE)]
_Port = Annotated[
    int | None, option("Port for DICOM; 0 takes any free port. [default: 11112]", _SERVICE, least=0, most=65535)
]
_HttpHost = Annotated[str | None, option("Address for STOW-RS, health and metrics. [default: 127.0.0.1]", _SERVICE)]
_HttpPort = Annotated[
    int | None, option("Its port; 0 takes any free port. [default: 11180]", _SERVICE, least=0, most=65535)
]
_Http = Annotated[bool, option("Serve health and metrics, and STOW-RS with --stow.", _SERVICE)]
_Stow = Annotated[bool, option("Also receive images by STOW-RS, at /studies.", _RECEIVING, "--stow")]
_Allowed = Annotated[list[str] | None, option("AE title that may call; repeatable. [default: all]", _RECEIVING)]
_Watch = Annotated[Path | None, option("Folder from which files are also taken; it is only read.", _RECEIVING)]
_Quiet = Annotated[
    float | None, option("Seconds without a new image after which a study is answered. [default: 5]", _RECEIVING)
]
_To = Annotated[
    list[str] | None,
    option(
        "Where results go: dicom://TITLE@HOST:PORT, dicoms:// for TLS, or the http(s) address of a DICOMweb service; "
        "repeatable.",
        _SENDING,
    ),
]
_Verify = Annotated[
    Literal["none", "find", "commitment", "qido"] | None,
    option("How to check that a destination has stored a result. [default: none]", _SENDING),
]
_Kinds = Annotated[
    str | None,
    option(
        "Which objects to send, separated by commas: sr, sc, map, seg; see dicom results. [default: sr,sc]",
        _SENDING,
        "--as",
        "--kinds",
    ),
]
_ReportClass = Annotated[
    Literal["comprehensive-3d", "comprehensive"] | None,
    option(
        "Class of structured reports: comprehensive is shown by more viewers. [default: comprehensive-3d]", _SENDING
    ),
]
_Unit = Annotated[
    Literal["1", "%"] | None, option("Unit of probabilities in structured reports. [default: 1]", _SENDING)
]
_DryRun = Annotated[bool, option("Receive and answer, but send nothing.", _SENDING, "--dry-run")]
_RetryFailed = Annotated[bool, option("Try again to deliver results that have failed.", _SENDING, "--retry-failed")]
_Spool = Annotated[Path | None, option("Folder for images received and results to send. [default: spool]", STORAGE)]
_Ood = Annotated[bool, option("Detect out-of-distribution images, and give them no probability.", DECISIONS)]


def node(
    config: _Config = None,
    model: options.Model = None,
    title: _Title = None,
    host: _Host = None,
    port: _Port = None,
    http_host: _HttpHost = None,
    http_port: _HttpPort = None,
    http: _Http = True,
    stow: _Stow = False,
    allowed: _Allowed = None,
    watch: _Watch = None,
    quiet: _Quiet = None,
    to: _To = None,
    verify: _Verify = None,
    kinds: _Kinds = None,
    report_class: _ReportClass = None,
    unit: _Unit = None,
    dry_run: _DryRun = False,
    retry_failed: _RetryFailed = False,
    spool: _Spool = None,
    database: Database = None,
    prevalence: options.Prevalence = None,
    threshold: options.Threshold = None,
    alpha: options.Alpha = None,
    false_alarms: options.FalseAlarms = None,
    ood: _Ood = True,
    refuse_out_of_scope: options.RefuseOutOfScope = False,
    device: options.Device = "auto",
    log_format: _LogFormat = None,
) -> None:
    """Receive DICOM images, predict them, and send the results to archives.

    Ctrl-C stops it.
    """
    from pneumoscope.decisions.threshold import require_number
    from pneumoscope.dicomnet.node_settings import read_settings

    flags = {
        "title": title, "host": host, "port": port, "http_host": http_host, "http_port": http_port, "allowed": allowed,
        "watch": watch, "quiet": quiet, "to": to, "verify": verify, "spool": spool, "database": database,
        "log_format": log_format, "stow": stow or None, "http": http, "dry_run": dry_run or None,
        "retry_failed": retry_failed or None, "model": model, "kinds": None if kinds is None else _read_kinds(kinds),
        "report_class": report_class, "unit": unit,
    }  # fmt: skip
    settings = read_settings(config, flags)
    deciding = {
        "device": device, "prevalence": prevalence, "threshold": threshold and require_number(threshold),
        "alpha": alpha, "false_alarms": false_alarms, "ood": ood, "refuse_out_of_scope": refuse_out_of_scope,
    }  # fmt: skip
    _run(settings, deciding)


def _read_kinds(text: str) -> list[str]:
    named = read_kinds(text)
    if other := [each for each in named if each.startswith("fhir")]:
        raise UsageError(f"{other[0]} is not a DICOM object. `pneumoscope dicom results` writes it.", "as")
    return [*named]


def _run(settings: "NodeSettings", deciding: dict[str, Any]) -> None:
    from pneumoscope.dicomnet.algorithm import identify
    from pneumoscope.dicomnet.node import run_node
    from pneumoscope.dicomnet.results import Answerer, ResultSettings
    from pneumoscope.inference.predictor import load

    chosen = choose_model(settings.model)
    predictor = load(chosen, **deciding)
    wanted = ResultSettings(settings.kinds, settings.report_class, settings.unit)
    answerer = Answerer(predictor, identify(predictor, chosen), wanted)

    def announce(running: "Node") -> None:
        names = ", ".join(each.name for each in settings.destinations) or "nobody"
        dry = " (dry run: nothing is sent)" if settings.dry_run else ""
        web = "" if running.http_port is None else f", HTTP on {settings.http_host}:{running.http_port}"
        echo(f"Spool: {settings.spool}. Results go to {names}{dry}.", err=True)
        echo(f"{settings.title} listens on {settings.host}:{running.port}{web} (Ctrl-C stops it)", err=True)

    from pneumoscope.cli.logs import show_log

    with show_log(settings.log_format, "pneumoscope.node"):
        run_node(settings, answerer, announce)
