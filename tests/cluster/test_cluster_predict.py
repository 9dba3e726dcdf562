"""Predictions on a Ray cluster: the same as on one machine, and none missing or double whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if any(find_spec(name) is None for name in ("ray", "moto", "s3fs")):
    pytest.skip("needs Ray, moto and s3fs: pip install 'pneumoscope[ray,dev]'", allow_module_level=True)

import fsspec
from moto.server import ThreadedMotoServer
from PIL import Image
from pyarrow import parquet

from commands import Command
from pneumoscope.cluster import claim, plan, worker
from pneumoscope.cluster.ids import IdSet
from pneumoscope.cluster.listing import ListedImage, list_images
from pneumoscope.cluster.predict import ClusterPredictions, Workers, predict_on_cluster
from pneumoscope.cluster.storage import Reader, Storage
from pneumoscope.cluster.worker import ListPredictor, Options, make_job
from pneumoscope.datasets.columns import Naming
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.images.read import Reading
from pneumoscope.inference.predictor import load
from pneumoscope.tasks.engine import open_ray
from pneumoscope.training.train import Run

COMMAND = (sys.executable, "-m", "pneumoscope", "cluster", "predict")
WORKERS = Workers(count=1, part_size=10)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a stand-in for S3 on this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("images")
        yield "s3://images"
    server.stop()


@pytest.fixture(scope="module")
def ray(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One cluster on this machine, which all tests of this module share; it knows the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLUSTER_TEST", "shared")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers find modules where this process does
        with open_ray(cpus=1) as running:
            yield running
        assert "RAY_AUTH_TOKEN" not in os.environ  # programs that this process starts later need not know it


def read_rows(out: Path | str) -> dict[str, dict[str, Any]]:
    """The rows of an output by path; no id may be there twice."""
    system, path = fsspec.core.url_to_fs(str(out), use_listings_cache=False, skip_instance_cache=True)
    rows = []
    for name in system.ls(f"{path}/predictions", detail=False):
        with system.open(name) as file, parquet.ParquetFile(file) as part:
            rows += part.read(use_threads=False).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def predict(data: object, out: object, run: Run, **options: Any) -> ClusterPredictions:
    return predict_on_cluster(str(data), str(out), run.model, workers=WORKERS, **options)


def test_a_folder_gets_the_predictions_of_one_machine_once(
    ray: Any, images: Path, run: Run, tmp_path: Path, command: Command
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, folder)
    words = ["cluster", "predict", folder, "--model", run.model, "--out", out, "--part-size", 10, "--workers", 1]
    done = command(*words)
    assert done.code == 0, done.err
    assert "48 images, 48 of them now." in done.err
    rows, expected = read_rows(out), load(run.model).predict(folder, progress=None)
    assert set(rows) == {str(each.path) for each in expected}
    for each in expected:
        row = rows[str(each.path)]
        assert row["probability"] == pytest.approx(each.probability, abs=1e-6)
        assert (row["decision"], row["sha256"], row["error"]) == (each.decision, each.sha256, None)
        assert row["patient"] != each.patient  # a pseudonym
    Image.new("L", (64, 64), 100).save(folder / "new.png")
    assert "49 images, 1 of them now." in command(*words).err
    assert "49 images, 0 of them now." in command(*words).err
    assert len(read_rows(out)) == 49


def test_plans_name_no_patients(images: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.cluster.predict._run", lambda *_: iter(()))
    monkeypatch.setattr("pneumoscope.cluster.predict.open_ray", lambda *_: nullcontext())
    for named in (True, False):
        out = tmp_path / str(named)
        with pytest.raises(DataError, match="missing after the run"):
            predict(images / "val", out, run, options=Options(patient_ids=named))
        rows = parquet.read_table(out / "plans" / "000000.parquet", use_threads=False).to_pylist()
        patients = {each.patient for each in list_images(str(images / "val"))}
        assert {row["patient"] for row in rows} & patients == (patients if named else set())


def test_a_table_of_addresses_may_name_files_too(images: Path, tmp_path: Path) -> None:
    file = next((images / "val").rglob("*.png"))
    shutil.copy(file, tmp_path / "own.png")
    (tmp_path / "table.csv").write_text("path\nmemory://some/a.png\nown.png\n")
    listed = list_images(str(tmp_path / "table.csv"))
    assert [each.path for each in listed] == ["memory://some/a.png", str(tmp_path / "own.png")]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/some/a.png", b"")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "ls", refuse)
    with pytest.raises(DataError, match="no access"):
        list(list_images("memory://some"))


def test_an_output_of_another_model_or_other_options_is_refused(
    images: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Iterator[int]:
        raise DataError("no cluster is needed here")

    monkeypatch.setattr("pneumoscope.cluster.predict._run", fail)
    for _ in range(2):
        with pytest.raises(DataError, match="no cluster is needed"):
            predict(images / "val", tmp_path, run)
    with pytest.raises(UsageError, match="begun with another value of options"):
        predict(images / "val", tmp_path, run, options=Options(alpha=0.2))
    with pytest.raises(UsageError, match="begun with another value of reading"):
        predict(images / "val", tmp_path, run, reading=Reading(invert=True))
    assert [path.name for path in tmp_path.glob("plans/*")] == ["000000.parquet"]
    with pytest.raises(UsageError, match="begun with another value of model_sha256"):
        predict_on_cluster(str(images / "val"), str(tmp_path), workers=WORKERS)


def test_plans_of_a_killed_command_bind_its_options(images: Path, tmp_path: Path) -> None:
    out, (image, *_) = Storage(str(tmp_path / "out")), list_images(str(images))

    def list_until_killed() -> Iterator[ListedImage]:
        yield from (replace(image, id=f"{number:032x}") for number in range(2000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.extend_plan(out, list_until_killed(), 1, {"options": "patient names"})
    assert out.list_names("plans")
    with pytest.raises(UsageError, match="begun with another value of options"):
        plan.check_output(out, {"options": "pseudonyms"})


def test_an_output_with_pseudonyms_of_another_key_is_refused(
    ray: Any, images: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(images / "test", tmp_path / "out", run)
    monkeypatch.setenv("PNEUMOSCOPE_PSEUDONYM_KEY_FILE", str(tmp_path / "other.key"))
    with pytest.raises(UsageError, match="begun with another value of pseudonym_key"):
        predict(images / "test", tmp_path / "out", run)


def test_a_request_that_fails_once_is_sent_again(images: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = next((images / "test" / "NORMAL").iterdir())
    fsspec.filesystem("memory").pipe_file("/once/a.png", file.read_bytes())
    failed: list[str] = []
    read = Reader.read

    def fail_once(self: Reader, url: str) -> bytes:
        if url not in failed:
            failed.append(url)
            raise DataError("503 SlowDown")
        return read(self, url)

    monkeypatch.setattr(Reader, "read", fail_once)
    monkeypatch.setattr(worker, "_PAUSE", 0.0)
    (row,) = ListPredictor(make_job(run.model)).run(list_images("memory://once"))
    assert failed
    assert row["error"] is None
    assert row["probability"] == pytest.approx(load(run.model).predict(file)[0].probability)


def test_the_lack_of_ray_is_said_before_anything_is_read(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pneumoscope.tasks.engine.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pneumoscope\[ray\]"):
        predict(tmp_path / "nowhere", tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


def test_an_address_without_a_cluster_is_said_at_once(images: Path, run: Run, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with subprocess.Popen(
            [*COMMAND, images, "--model", run.model, "--out", tmp_path / "out", "--address", address],
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            message = process.communicate()[1]
    assert process.returncode == 5
    assert f"{address}: no Ray cluster could be used" in message
    assert ".cc:" not in message  # what Ray's core logs


def find_processes(mark: str) -> Iterator[Path]:
    """The processes with this value of `CLUSTER_TEST` in their environment, as folders of /proc."""
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and f"CLUSTER_TEST={mark}\0".encode() in (process / "environ").read_bytes():
                yield process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_cluster_of_this_machine_listens_on_loopback_only(ray: Any) -> None:
    listening = dict[str, str]()
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        listening |= {f"socket:[{row[9]}]": row[1].partition(":")[0] for row in rows if row[3] == "0A"}
    found = set()
    for process in find_processes("shared"):
        with suppress(OSError):
            found |= {
                listening[name] for file in (process / "fd").iterdir() if (name := str(file.readlink())) in listening
            }
    assert found
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_file_that_cannot_be_read_is_a_row_and_what_a_table_says_counts(
    ray: Any, images: Path, run: Run, tmp_path: Path
) -> None:
    first, second, *_ = sorted((images / "test" / "NORMAL").iterdir())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    table = tmp_path / "table.csv"
    table.write_text(
        "Image,label,patient,invert\n"
        f"{first},NORMAL,p1,false\n{second},NORMAL,p2,true\nbroken.png,NORMAL,p3,false\nmissing.png,NORMAL,p4,false\n"
        f"{first},NORMAL,p1,false\n"
    )
    done = predict(table, tmp_path / "out", run, naming=Naming("Image"), options=Options(patient_ids=True))
    rows = read_rows(tmp_path / "out")
    assert (done.images, done.new, done.failed) == (4, 4, 2)
    assert {row["patient"] for row in rows.values()} == {"p1", "p2", "p3", "p4"}
    assert {Path(path).name for path, row in rows.items() if row["error"]} == {"broken.png", "missing.png"}
    plain = load(run.model).predict(second, progress=None)[0]
    assert rows[str(second)]["probability"] != pytest.approx(plain.probability, abs=1e-3)  # inverted, as the table says


def test_images_that_no_machine_reaches_are_not_taken_for_bad_images(ray: Any, run: Run, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path\nmemory://no/a.png\nmemory://no/b.png\n")
    with pytest.raises(DataError, match="2 of 2 images cannot be reached"):
        predict(table, tmp_path / "out", run)
    assert not (tmp_path / "out" / "predictions").exists()


def test_images_that_have_gone_are_rows_if_others_are_there_and_a_lost_mount_is_not(
    images: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images / "val", folder)
    listed = list(list_images(str(folder)))
    gone = [each for each in listed if "NORMAL" in each.path]
    there = next(each.path for each in listed if "PNEUMONIA" in each.path)
    assert gone
    shutil.rmtree(folder / "NORMAL")
    job = make_job(run.model)
    rows = list(ListPredictor(job, [*(each.path for each in gone), there]).run(gone))
    assert [row["id"] for row in rows] == [each.id for each in gone]
    assert all("No such file" in str(row["error"]) for row in rows)
    folder.rename(tmp_path / "unmounted")
    folder.mkdir()
    for lost in (gone, listed):
        with pytest.raises(DataError, match=r"images cannot be reached.* were deleted, pass `allow_missing=True`"):
            list(ListPredictor(job, [there]).run(lost))
    rows = list(ListPredictor(make_job(run.model, Options(allow_missing=True)), [there]).run(listed))
    assert [row["id"] for row in rows] == [each.id for each in listed]
    assert all("No such file" in str(row["error"]) for row in rows)


def test_a_table_that_names_a_folder_that_has_gone_is_predicted_if_that_is_allowed(
    ray: Any, images: Path, run: Run, tmp_path: Path
) -> None:
    out, table = tmp_path / "out", tmp_path / "table.csv"
    there, gone = sorted((images / "val").rglob("*.png")), [tmp_path / "gone" / f"{i:02}.png" for i in range(24)]
    table.write_text("path\n" + "".join(f"{each}\n" for each in (*there, *gone)))
    with pytest.raises(DataError, match="images cannot be reached"):
        predict(table, out, run)
    found = predict(table, out, run, options=Options(allow_missing=True))
    assert found.images == len(rows := read_rows(out)) == 36
    assert {path for path, row in rows.items() if row["error"]} == set(map(str, gone))


def test_a_second_command_in_a_bucket_is_refused_and_a_killed_one_is_not_waited_for_long(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_RENEWED", 0.2)
    monkeypatch.setattr(claim, "_PATIENCE", 2.0)
    out = Storage(f"{bucket}/claimed")
    with claim.claim_output(out) as first:
        with pytest.raises(UsageError, match=r"another command on .* is writing to"), claim.claim_output(out):
            pass
        first.check()
    assert not out.exists(claim.CLAIM)
    out.write(claim.CLAIM, b'{"owner": "of a killed command"}')
    with claim.claim_output(out) as taken:
        assert b"killed" not in out.read(claim.CLAIM)
        assert not out.create(claim.CLAIM, b"")
        out.write(claim.CLAIM, b'{"owner": "which came back"}')
        time.sleep(1)
        with pytest.raises(UsageError, match="another command is writing to"):
            taken.check()
    assert out.exists(claim.CLAIM)  # that of the other one


def test_ids_are_found_again_whatever_they_end_with() -> None:
    ids, seen = IdSet(), set[str]()
    for begin in range(0, 900, 30):
        batch = [f"{number * number % 701:030x}00" for number in range(begin, begin + 40)]
        new = []
        for each in batch:
            new.append(each not in seen)
            seen.add(each)
        assert ids.add(batch) == new
        assert all(ids.has(batch))
    assert len(ids) == len(seen)
    assert ids.has(["f" * 32]) == [False]


def test_a_bucket_is_read_and_written(ray: Any, bucket: str, images: Path, run: Run, tmp_path: Path) -> None:
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    files = sorted((images / "test").rglob("*.png"))
    for file in files:
        system.pipe_file(f"images/scans/{file.parent.name}/{file.name}", file.read_bytes())
    system.pipe_file("images/scans/notes.pdf", b"no image")
    out = f"{bucket}/out"
    done = predict(f"{bucket}/scans", out, run)
    assert (done.images, done.new, done.failed) == (len(files), len(files), 0)
    rows = read_rows(out)
    expected = {each.path.name: each for each in load(run.model).predict(files, progress=None) if each.path}
    assert {Path(path).name for path in rows} == set(expected)
    for path, row in rows.items():
        assert path.startswith(f"{bucket}/scans/")
        assert row["probability"] == pytest.approx(expected[Path(path).name].probability, abs=1e-6)
    system.pipe_file("images/table.csv", f"path,age\nscans/NORMAL/{files[0].name},60\n{bucket}/gone.png,\n".encode())
    listed = predict(f"{bucket}/table.csv", tmp_path / "listed", run)
    assert (listed.images, listed.failed) == (2, 1)
    assert read_rows(tmp_path / "listed")[f"{bucket}/scans/NORMAL/{files[0].name}"]["age"] == 60


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_killed_worker_and_driver_lose_nothing(ray: Any, images: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [images, "--model", run.model, "--out", out, "--part-size", 2, "--workers", 1]
    command = [*COMMAND, *map(str, words)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), CLUSTER_TEST=str(tmp_path))

    def wait_for(parts: int) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and driver.poll() is None:
            if len(list((out / "predictions").glob("*.parquet"))) >= parts:
                return
            time.sleep(0.02)

    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        wait_for(2)
        for process in find_processes(str(tmp_path)):
            if b"PartPredictor" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        wait_for(6)
        driver.kill()
    written = len(list((out / "predictions").glob("*.parquet")))
    assert 0 < written <= 24
    done = predict(images, out, run)
    assert (done.images, done.failed) == (48, 0)
    assert done.new <= 48 - 2 * written
    assert len(read_rows(out)) == 48
