"""Erasing what a node has of studies or images: files in its spool, and their rows."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from pneumoscope.dicomnet.spool import Spool, digest
from pneumoscope.dicomnet.tables import Delivery, Image, ResultRecord, Study, Transaction, open_tables
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.storage.databases import explain, forget_deleted

_STUDY = 40  # characters of the hash in the tables


@dataclass(frozen=True)
class ErasedImages:
    """What was erased, or would be.

    Attributes:
        images: of the node whose spool was given.
        remaining: images of nodes whose spool was not given.
    """

    images: int
    remaining: int


def erase_images(
    url: str | None, spool: Path | None, studies: Iterable[str], sha256s: Iterable[str], *, dry_run: bool = False
) -> ErasedImages:
    """Erase images of a node that is not running, their results and all rows about them.

    Args:
        url: of the database.
        spool: the node's folder; None: count only, as the node would take files without rows for new ones.
        studies: Study Instance UIDs.
        sha256s: of the content of images.
        dry_run: whether to count only.

    Raises:
        UsageError: the spool is not a node's, or the node is running.
        DataError: something cannot be erased.
    """
    if spool is not None and not (spool / "node.json").is_file():
        raise UsageError(f"{spool}: not the spool of a node, because it has no node.json.", parameter="spool")
    engine, location = open_tables(url, create=False)
    try:
        with ExitStack() as stack:
            opened = stack.enter_context(Spool(spool, 0).open()) if spool is not None else None
            found = _find(engine, [digest(each)[:_STUDY] for each in studies], list(sha256s))
            own = [row for row in found if opened is not None and row.node == opened.node]
            if opened is not None and own and not dry_run:
                _erase(engine, opened, own)
                forget_deleted(engine)
    except sql.exc.SQLAlchemyError as problem:
        raise DataError(f"{location}: the database reports an error: {explain(problem)}.") from None
    except OSError as problem:
        raise DataError(f"{problem.filename or spool}: cannot be deleted: {problem.strerror}.") from None
    finally:
        engine.dispose()
    return ErasedImages(len(own), len(found) - len(own))


def _find(engine: sql.Engine, studies: list[str], sha256s: list[str]) -> list[sql.Row[int, str, str, str]]:
    """Images of these studies or with these contents, and all others of their studies."""
    with engine.connect() as connection:
        query = sql.select(Image.study).where(Image.sha256.in_(sha256s), Image.study != "")
        studies = [*studies, *connection.scalars(query)] if sha256s else studies
        matches = sql.or_(Image.study.in_(studies), Image.sha256.in_(sha256s))
        columns = (Image.id, Image.node, Image.key, Image.study)
        return list(connection.execute(sql.select(*columns).where(matches).order_by(Image.id)).all())


def _erase(engine: sql.Engine, spool: Spool, images: list[sql.Row[int, str, str, str]]) -> None:
    """Erase the files, then the rows: after an interruption, the rest is found by them."""
    for image in images:
        with engine.begin() as connection:
            query = sql.select(ResultRecord.id, ResultRecord.file).where(ResultRecord.image_id == image.id)
            results = connection.execute(query).all()
            for result in results:
                spool.remove_result(result.file)
            spool.remove(image.key)
            spool.take_back(image.key)
            deliveries = sql.select(Delivery.id).where(Delivery.result_id.in_([result.id for result in results]))
            connection.execute(sql.delete(Transaction).where(Transaction.delivery_id.in_(deliveries)))
            connection.execute(sql.delete(Delivery).where(Delivery.result_id.in_([result.id for result in results])))
            connection.execute(sql.delete(ResultRecord).where(ResultRecord.image_id == image.id))
            connection.execute(sql.delete(Image).where(Image.id == image.id))
            left = sql.exists().where(Image.node == image.node, Image.study == image.study)
            connection.execute(
                sql.delete(Study).where(Study.node == image.node, Study.study == image.study, sql.not_(left))
            )
