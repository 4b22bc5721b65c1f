"""The sizes that keep a file readable and a door narrow, by the script that measures them (`benchmarks/structure.py`)."""

import structure

WIDE = {"slice1d", "slice2d", "connect", "temperature", "sharpness"}  # each with as many settings of its own


def test_classes_and_files_fit_a_reader_and_doors_are_narrow():
    rows = {row.title: row for row in structure.table()}
    for title in ("import circles", "classes above 250 lines", "files above 450 lines"):
        assert rows[title].value == 0, rows[title].names
    for title in ("error classes of partial results", "Deadline classes"):
        assert rows[title].value == 1, rows[title].names
    assert {name.split()[0] for name in rows["public functions of more than 8 parameters"].names} == WIDE
