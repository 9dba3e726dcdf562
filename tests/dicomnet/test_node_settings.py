"""Settings of the node: from a file, the environment and flags, checked with the name of what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pneumoscope.dicomnet.addresses import Destination, Tls, parse_destination
from pneumoscope.dicomnet.encryption import make_client_context, make_server_context
from pneumoscope.dicomnet.node_settings import read_settings
from pneumoscope.dicomnet.receiver import resolve_classes
from pneumoscope.dicomnet.rules import Rule
from pneumoscope.errors import UsageError

ARCHIVE = "dicom://ARCHIVE@10.0.0.1:104"


def read(tmp_path: Path, content: dict[str, Any], flags: dict[str, Any] | None = None, **environment: str) -> Any:
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_settings(path, flags or {}, {f"PNEUMOSCOPE_NODE_{key}": value for key, value in environment.items()})


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = {"port": 1, "quiet": 1, "title": "FILE", "destinations": [{"host": "a", "title": "A"}]}
    settings = read(tmp_path, file, {"port": 3, "title": None}, PORT="2", QUIET="2.5")
    assert (settings.port, settings.quiet, settings.title) == (3, 2.5, "FILE")
    assert [each.name for each in settings.destinations] == ["A@a:104"]
    settings = read(tmp_path, file, TO=f"{ARCHIVE} https://pacs/dicom-web", ALLOWED="CT1 CR2")
    assert [each.name for each in settings.destinations] == ["ARCHIVE@10.0.0.1:104", "https://pacs/dicom-web"]
    assert settings.allowed == ("CT1", "CR2")


def test_a_file_holds_rules_destinations_tls_and_limits(tmp_path: Path) -> None:
    content = {
        "destinations": [{"name": "web", "url": "https://pacs/dicom-web", "verify": "qido"}],
        "rules": [{"modality": "CR", "age_below": 18, "to": ["web"]}, {"answer": False}],
        "limits": {"associations": 4},
        "tls": {"certificate": "a.pem", "key": "a.key"},
        "allowed": "MODALITY",
    }
    settings = read(tmp_path, content)
    assert settings.rules == (Rule(modality=("CR",), age_below=18, to=("web",)), Rule(answer=False))
    assert settings.limits.associations == 4
    assert settings.tls.certificate == Path("a.pem")
    assert settings.allowed == ("MODALITY",)


@pytest.mark.parametrize(
    ("content", "named", "said"),
    [
        ({"prot": 1}, "prot", "unknown key"),
        ({"port": "x"}, "port", "a whole number"),
        ({"port": 70000}, "port", "65535"),
        ({"destinations": {"host": "a"}}, "destinations", "a list"),
        ({"destinations": [{"hots": "a"}]}, "destinations[0].hots", "unknown key"),
        ({"destinations": [{"name": "x"}]}, "destinations", "either"),
        ({"destinations": [{"host": "a", "title": "A", "verify": "qido"}]}, "verify", "does not suit"),
        ({"destinations": [{"url": "https://a", "verify": "find"}]}, "verify", "does not suit"),
        ({"destinations": [{"url": "ftp://a"}]}, "destinations", "http"),
        ({"destinations": [{"host": "a", "title": "A", "token_file": "t"}]}, "token_file", "DICOMweb"),
        ({"destinations": [{"host": "a", "title": "A", "login_file": "t"}]}, "login_file", "DICOMweb"),
        ({"destinations": [{"url": "http://pacs/dicom-web", "token_file": "t"}]}, "token_file", "https://"),
        ({"destinations": [{"url": "http://10.0.0.1/dicom-web", "login_file": "t"}]}, "login_file", "https://"),
        ({"destinations": [{"url": "https://a", "secure": True}]}, "secure", "https://"),
        ({"destinations": [{"url": "http://a", "tls": {"authorities": "a.pem"}}]}, "tls", "https://"),
        ({"destinations": [{"host": "a", "title": "A", "tls": {"key": "k.pem"}}]}, "tls.key", "certificate"),
        ({"destinations": [{"url": f"https://a/{'x' * 200}"}]}, "name", "200"),
        ({"destinations": [{"url": "http://a"}, {"url": "http://a"}]}, "to", "two destinations"),
        ({"destinations": [{"host": "a", "title": "A" * 17}]}, "title", "no AE title"),
        ({"rules": [{"modalty": "CR"}]}, "rules[0].modalty", "unknown key"),
        ({"rules": [{"to": "nowhere"}]}, "rules[0].to", "nowhere"),
        ({"title": "A\\B"}, "title", "no AE title"),
        ({"tls": {"certificate": "a.pem"}}, "tls.key", "private key"),
        ({"tls": {"authorities": "a.pem"}}, "tls.authorities", "no effect"),
        ({"http_host": "0.0.0.0"}, "http_host", "token"),
        ({"kinds": "sr,xy"}, "kinds.1", "found 'xy'"),
        ({"kinds": []}, "kinds", "no kind"),
        ({"report_class": "basic"}, "report_class", "comprehensive"),
        ({"token": "short"}, "token", "16"),
        ({"stow": True, "http_port": None}, "stow", "port"),
        ({"dry_run": False}, "to", "destination"),
    ],
)
def test_what_is_wrong_is_named(content: dict[str, Any], named: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, {"dry_run": True, **content})
    assert caught.value.parameter is not None
    assert caught.value.parameter.endswith(named)
    assert said in caught.value.message


def test_what_results_are_like_can_be_set_everywhere(tmp_path: Path) -> None:
    settings = read(tmp_path, {"dry_run": True})
    assert (settings.kinds, settings.report_class, settings.unit) == (("sr", "sc"), "comprehensive-3d", "1")
    file = {"dry_run": True, "kinds": ["sr", "seg"], "report_class": "comprehensive", "unit": "%", "model": "a.npz"}
    settings = read(tmp_path, file)
    assert (settings.kinds, settings.report_class, settings.unit) == (("sr", "seg"), "comprehensive", "%")
    assert settings.model == "a.npz"
    assert read(tmp_path, {"dry_run": True, "kinds": "sr,map"}).kinds == ("sr", "map")
    settings = read(tmp_path, file, KINDS="sc, map", REPORT_CLASS="comprehensive-3d", UNIT="1", MODEL="b.npz")
    assert (settings.kinds, settings.report_class, settings.unit) == (("sc", "map"), "comprehensive-3d", "1")
    assert settings.model == "b.npz"
    settings = read(tmp_path, file, {"kinds": ["sr"], "unit": "1"}, KINDS="sc")
    assert (settings.kinds, settings.unit) == (("sr",), "1")


def test_a_token_may_go_to_this_computer_without_encryption(tmp_path: Path) -> None:
    for host in ("127.0.0.1:8042", "localhost", "[::1]:80"):
        settings = read(tmp_path, {"destinations": [{"url": f"http://{host}/dicom-web", "token_file": "t"}]})
        assert settings.destinations[0].token_file == Path("t")


def test_an_unknown_variable_and_a_useless_verify_are_refused() -> None:
    with pytest.raises(UsageError, match="PNEUMOSCOPE_NODE_PROT: unknown variable"):
        read_settings(None, {"dry_run": True}, {"PNEUMOSCOPE_NODE_PROT": "1"})
    with pytest.raises(UsageError, match="verify: no effect"):
        read_settings(None, {"dry_run": True, "verify": "find"}, {})


def test_addresses_are_read() -> None:
    to = parse_destination("dicoms://MY%20PACS@[::1]:2762", "find")
    assert to == Destination("MY PACS@::1:2762", "::1", 2762, "MY PACS", verify="find", secure=True)
    for wrong in ("pacs", "dicom://pacs:104", "dicom://A@pacs", "dicom://A@pacs:x", "https://me:pw@pacs/", "http://"):
        with pytest.raises(UsageError, match=r"^to: "):
            parse_destination(wrong)


def test_sop_classes_are_keywords_or_uids() -> None:
    cr = "1.2.840.10008.5.1.4.1.1.1"
    assert resolve_classes(["ComputedRadiographyImageStorage", "1.2.3"]) == [cr, "1.2.3"]
    with pytest.raises(UsageError, match="Radiographs: no SOP class"):
        resolve_classes(["Radiographs"])


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(UsageError, match=r"wrong\.pem: cannot be used as PEM"):
        make_server_context(Tls(wrong, wrong))
    with pytest.raises(UsageError, match=r"missing\.pem"):
        make_client_context(Tls(authorities=tmp_path / "missing.pem"))
