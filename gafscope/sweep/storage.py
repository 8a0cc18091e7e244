"""Opening the database that queues a sweep's trials."""

from __future__ import annotations

import random
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafscope.errors import UserError
from gafscope.records.files import write_failure

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_PATIENCE = 60.0  # seconds to wait for a busy database
_REACH = 10  # seconds to wait for a server
_TRIES = 3
# Signs of life that may be missed before a worker counts as dead.
_MISSED = 4


def open_storage(address: str, heartbeat: int) -> RDBStorage:
    """Open a storage of Optuna's, which is made where it is missing.

    Args:
        address: An address as SQLAlchemy takes it: sqlite:///FILE, postgresql://..., mysql://...
        heartbeat: Seconds between two signs of life of a running trial.

    Returns:
        The storage.

    Raises:
        UserError: If Optuna or the database's driver is not installed, or it cannot be reached.
    """
    try:
        import optuna
        import sqlalchemy.exc
    except ImportError as error:
        raise UserError(
            "A sweep needs Optuna, which is not installed: pip install 'gafscope[sweep]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        url = sqlalchemy.make_url(address)
    except sqlalchemy.exc.ArgumentError as error:
        raise UserError(
            f"The storage must be the address of a database, such as sqlite:///FILE or "
            f"postgresql+psycopg://USER:PASSWORD@HOST/NAME, but is {address!r}; correct it."
        ) from error
    if url.drivername.startswith("sqlite") and url.database:
        folder = Path(url.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failure(folder, error, "Nothing was written.") from error
    for left in reversed(range(_TRIES)):
        try:
            return _open(address, url, heartbeat)
        except ImportError as error:
            raise UserError(
                f"The storage {url.render_as_string()} needs a driver that is not installed: "
                f"{str(error).rstrip('.')}. For PostgreSQL: pip install 'psycopg[binary]', and an "
                "address that begins with postgresql+psycopg://."
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            # Two that create the tables at the same moment: one of them tries again.
            if not left or "refused" in str(error):
                reason = str(getattr(error, "orig", error)).splitlines()[0].rstrip(".")
                raise UserError(
                    f"Cannot open the storage {url.render_as_string()}: {reason}. Check the "
                    "address, and that the database runs and lets this machine in."
                ) from error
            time.sleep(random.uniform(0.2, 0.6))
    raise AssertionError("unreachable")


def _open(address: str, url: Any, heartbeat: int) -> RDBStorage:
    import sqlalchemy.event
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage

    options: dict[str, Any] = {"pool_pre_ping": True}
    sqlite = url.drivername.startswith("sqlite")
    if sqlite:
        options["connect_args"] = {"timeout": _PATIENCE}
    elif url.drivername.startswith(("postgresql", "mysql")):
        options["connect_args"] = {"connect_timeout": _REACH}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = RDBStorage(
            address,
            options,
            heartbeat_interval=heartbeat,
            grace_period=_MISSED * heartbeat,
        )
    if sqlite:
        # Optuna claims a trial by reading its state and writing it, under a lock of the row that
        # SQLite does not have: without this two workers could claim the same trial.
        sqlalchemy.event.listen(storage.engine, "connect", _leave_transactions_alone)
        sqlalchemy.event.listen(storage.engine, "begin", _lock_at_once)
        storage.engine.dispose()
    return storage


def _leave_transactions_alone(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _lock_at_once(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
