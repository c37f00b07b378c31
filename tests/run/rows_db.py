"""Changes to a SQLite file of rows beside the program's own."""
import contextlib
import sqlite3


def change(path, *statements):
    """All of them in one transaction."""
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def set_position(path, position, where="1=1"):
    """The stored position, a number or an expression, of the partitions that `where` tells."""
    change(path, f"UPDATE partition_progress SET position = {position} WHERE {where}")
